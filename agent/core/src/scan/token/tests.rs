use crate::scan::told;

fn holds(path: &str, text: &str) {
    told::holds(path, text, &["token-passthrough"]);
}

#[test]
fn tokens_that_go_on() {
    holds(
        "src/proxy.ts",
        r#"
import axios from "axios";
app.post("/mcp", async (req, res) => {
  const auth = req.headers.authorization;
  const token = auth?.split(" ")[1];
  await fetch(`${API}/items`, { headers: { Authorization: auth } }); //!token-passthrough
  await axios.get(`${API}/items`, {
    headers: {
      "Authorization": `Bearer ${token}`, //!token-passthrough
    },
  });
  const headers = { Accept: "application/json" };
  headers["Authorization"] = req.headers["authorization"]; //!token-passthrough
  await fetch(API, { headers });
  const client = new GitHubClient(token); //!token-passthrough
  await fetch(API, { headers: req.headers }); //!token-passthrough
});
server.tool("me", {}, async (args, extra) => {
  return fetch(API, { headers: { Authorization: `Bearer ${extra.authInfo.token}` } }); //!token-passthrough
});
"#,
    );
    holds(
        "src/exchange.ts",
        r#"
app.post("/mcp", async (req, res) => {
  const token = req.headers.authorization?.slice(7);
  const claims = await verifyToken(token);
  const upstream = await exchangeToken(token);
  await fetch(API, { headers: { Authorization: `Bearer ${upstream}` } });
  await fetch(API, { headers: { Authorization: `Bearer ${process.env.API_TOKEN}` } });
  const stored = sessions.get(claims.sub);
  await fetch(API, { headers: { Authorization: `Bearer ${stored.accessToken}` } });
  res.json({ authorization: "kept" });
});
"#,
    );
    holds(
        "server.py",
        r#"
import httpx
from fastmcp.server.dependencies import get_access_token, get_http_headers

@mcp.tool()
async def items(ctx: Context) -> str:
    headers = {"Authorization": get_http_headers().get("authorization")}  #!token-passthrough
    async with httpx.AsyncClient() as client:
        return (await client.get(API, headers=headers)).text

@mcp.tool()
async def mine() -> str:
    token = get_access_token()
    r = httpx.get(API, headers={"Authorization": f"Bearer {token.token}"})  #!token-passthrough
    return r.text

@app.get("/items")
async def proxy(request: Request):
    auth = request.headers.get("Authorization", "")
    r = requests.get(API, headers={"Authorization": auth})  #!token-passthrough
    r = requests.get(API, headers={"Authorization": f"Bearer {os.environ['API_TOKEN']}"})
    return r.json()
"#,
    );
    holds(
        "proxy.go",
        r#"
package main

func handle(w http.ResponseWriter, r *http.Request) {
	req, _ := http.NewRequest("GET", upstream, nil)
	req.Header.Set("Authorization", r.Header.Get("Authorization")) //!token-passthrough
	req.Header.Set("Authorization", "Bearer "+os.Getenv("API_TOKEN"))
}
"#,
    );
}

#[test]
fn tokens_that_somebody_else_may_have_been_given() {
    holds(
        "verify.py",
        r#"
import httpx
class GitHubVerifier(TokenVerifier):
    async def verify_token(self, token: str) -> AccessToken | None:
        async with httpx.AsyncClient() as client:
            r = await client.get("https://api.github.com/user", headers={"Authorization": f"Bearer {token}"})  #!token-passthrough
        if r.status_code != 200:
            return None
        return AccessToken(token=token, client_id="x", scopes=[])
"#,
    );
    holds(
        "verify.py",
        r#"
import httpx
class GoogleVerifier(TokenVerifier):
    async def verify_token(self, token: str) -> AccessToken | None:
        async with httpx.AsyncClient() as client:
            r = await client.get("https://www.googleapis.com/oauth2/v3/tokeninfo", params={"access_token": token})
        if r.status_code != 200 or r.json()["aud"] != CLIENT_ID:
            return None
        return AccessToken(token=token, client_id="x", scopes=[])

async def checked(request):
    auth = request.headers["authorization"]
    r = httpx.get("https://idp.example.com/userinfo", headers={"Authorization": auth})
    return r.json()["aud"] == "x"

async def profile(token):
    return httpx.get("https://api.example.com/userinfo", headers={"Authorization": f"Bearer {token}"}).json()
"#,
    );
}

#[test]
fn checks_of_tokens() {
    holds(
        "jwt_auth.py",
        r#"
import jwt
def verify(token):
    key = jwks_client.get_signing_key_from_jwt(token).key
    claims = jwt.decode(token, key, algorithms=["RS256"], options={"verify_aud": False})  #!token-passthrough
    return claims

def open_door(token):
    return jwt.decode(token, options={"verify_signature": False})  #!token-passthrough

def good(token):
    return jwt.decode(token, key, algorithms=["RS256"], audience="https://mcp.example.com", issuer=ISSUER)

def own(token):
    return jwt.decode(token, SECRET, algorithms=["HS256"])

def plain(token):
    return jwt.decode(token, PUBLIC_KEY, algorithms=["RS256"])  #!token-passthrough
"#,
    );
    holds(
        "src/auth.ts",
        r#"
import { createRemoteJWKSet, jwtVerify, decodeJwt } from "jose";
const JWKS = createRemoteJWKSet(new URL(`${issuer}/jwks`));
export async function requireAuth(req, res, next) {
  const { payload } = await jwtVerify(token, JWKS, { issuer }); //!token-passthrough
  next();
}
export async function strict(req, res, next) {
  const { payload } = await jwtVerify(token, JWKS, { issuer, audience: "https://mcp.example.com" });
  next();
}
export async function lax(req, res, next) {
  const claims = jwt.verify(token, key, { ignoreExpiration: true, audience: "https://mcp.example.com" }); //!token-passthrough
}
export async function authenticate(req) {
  return decodeJwt(token); //!token-passthrough
}
export async function graph(token) {
  return jwtVerify(token, JWKS, { audience: "https://graph.microsoft.com" }); //!token-passthrough
}
"#,
    );
}
