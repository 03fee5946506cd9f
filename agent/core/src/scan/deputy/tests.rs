use crate::scan::told;

fn holds(path: &str, text: &str) {
    told::holds(path, text, &["confused-deputy"]);
}

#[test]
fn one_client_for_everybody() {
    holds(
        "src/oauth.ts",
        r#"
import express from "express";
app.post("/register", (req, res) => {
  res.status(201).json({
    client_id: process.env.GITHUB_CLIENT_ID, //!confused-deputy
    redirect_uris: req.body.redirect_uris,
  });
});
"#,
    );
    holds(
        "src/oauth.ts",
        r#"
import express from "express";
app.post("/register", async (req, res) => {
  const client_id = randomUUID();
  await store.put(client_id, req.body.redirect_uris);
  res.status(201).json({ client_id, redirect_uris: req.body.redirect_uris });
});
app.post("/other", (req, res) => res.json({ client_id: process.env.GITHUB_CLIENT_ID }));
"#,
    );
    holds(
        "oauth.py",
        r#"
from fastapi import FastAPI
@app.post("/register")
async def register(request: Request):
    body = await request.json()
    return {
        "client_id": CLIENT_ID,  #!confused-deputy
        "redirect_uris": body["redirect_uris"],
    }

CLIENT_ID = os.environ["UPSTREAM_CLIENT_ID"]

class Provider:
    async def register_client(self, client_info):
        client_info.client_id = self.settings.client_id  #!confused-deputy
        self.clients[client_info.client_id] = client_info
"#,
    );
}

#[test]
fn straight_to_the_other_service() {
    let server = |body: &str| {
        format!(
            r#"
import express from "express";
app.get("/authorize", (req, res) => {{
  const {{ state, redirect_uri }} = req.query;
  pending.set(state, redirect_uri);
{body}
}});
"#
        )
    };
    holds(
        "src/authorize.ts",
        &server(
            r#"
  const url = new URL("https://github.com/login/oauth/authorize");
  url.searchParams.set("client_id", process.env.GITHUB_CLIENT_ID);
  res.redirect(url.toString()); //!confused-deputy
"#,
        ),
    );
    holds(
        "src/authorize.ts",
        &server(
            r#"
  if (!approvals.has(req.cookies.approved, req.query.client_id)) return renderConsentPage(res, req.query.client_id);
  const url = new URL("https://github.com/login/oauth/authorize");
  url.searchParams.set("client_id", process.env.GITHUB_CLIENT_ID);
  res.redirect(url.toString());
"#,
        ),
    );
    holds(
        "authorize.py",
        r#"
CLIENT_ID = os.environ["UPSTREAM_CLIENT_ID"]
@app.get("/oauth/authorize")
async def authorize(request: Request, state: str):
    return RedirectResponse(f"https://idp.example.com/authorize?client_id={CLIENT_ID}&state={state}&response_type=code")  #!confused-deputy

@app.get("/login")
async def login(request: Request):
    return RedirectResponse(f"https://idp.example.com/authorize?client_id={CLIENT_ID}&state={new_state()}")
"#,
    );
}

#[test]
fn redirects() {
    holds(
        "src/redirect.ts",
        r#"
import express from "express";
function allowed(redirectUri, client) {
  return client.redirects.some((one) => redirectUri.startsWith(one)); //!confused-deputy
}
function localOnly(redirect_uri) {
  if (!redirect_uri.includes("localhost")) throw new Error("no"); //!confused-deputy
}
function exact(redirectUri, client) {
  if (!redirectUri.startsWith("https://")) return false;
  return client.redirect_uris.includes(redirectUri);
}
app.get("/open", (req, res) => {
  res.redirect(`${req.query.redirect_uri}?code=${code}`); //!confused-deputy
});
app.get("/done", (req, res) => {
  const { redirect_uri } = req.query;
  if (!client.redirect_uris.includes(redirect_uri)) return res.status(400).end();
  res.redirect(`${redirect_uri}?code=${code}`);
});
"#,
    );
    holds(
        "redirect.py",
        r#"
def check(redirect_uri, client):
    if not redirect_uri.startswith(client.base):  #!confused-deputy
        raise ValueError("no")

def strict(redirect_uri, client):
    if redirect_uri not in client.redirect_uris:
        raise ValueError("no")
"#,
    );
}

#[test]
fn callbacks_without_a_state() {
    let server = |check: &str| {
        format!(
            r#"
import express from "express";
app.get("/oauth/callback", async (req, res) => {{
  const code = req.query.code;{check}
  const token = await exchangeCode(code, CLIENT_ID, redirect_uri);
  res.send("done");
}});
"#
        )
    };
    let bare = server("").replace(
        "app.get(\"/oauth/callback\", async (req, res) => {",
        "app.get(\"/oauth/callback\", async (req, res) => { //!confused-deputy",
    );
    holds("src/callback.ts", &bare);
    holds("src/callback.ts", &server("\n  if (req.query.state !== req.session.state) return res.status(400).end();"));
}
