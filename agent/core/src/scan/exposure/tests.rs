use crate::scan::told;

fn holds(path: &str, text: &str) {
    told::holds(path, text, &["secret-exposure"]);
}

#[test]
fn logs_errors_and_results() {
    holds(
        "server.py",
        r#"
import os, logging
API_KEY = os.environ["API_KEY"]
print(f"using {API_KEY}")  #!secret-exposure
logging.info("key %s", os.getenv("OPENAI_API_KEY"))  #!secret-exposure
print("key is set" if API_KEY else "no key")
print(f"key ends in {API_KEY[-4:]}, {len(API_KEY)} long, {bool(API_KEY)}")
print("API_KEY is missing")
logger.debug(f"connecting with password={config.password}")  #!secret-exposure
print(os.environ)  #!secret-exposure
print(os.environ["HOME"])

@mcp.tool()
def env() -> dict:
    return dict(os.environ)  #!secret-exposure

@mcp.tool()
def listing() -> str:
    out = ""
    for key, value in os.environ.items():
        out += f"{key}={value}"
    return out  #!secret-exposure

@mcp.tool()
def names() -> str:
    return ", ".join(name for name in os.environ)

@mcp.tool()
def status() -> str:
    return f"connected with {API_KEY}"  #!secret-exposure

@mcp.tool()
def ask() -> str:
    headers = {"Authorization": f"Bearer {API_KEY}"}
    return requests.get(URL, headers=headers).text

def headers():
    return {"Authorization": f"Bearer {API_KEY}"}

def fails():
    raise ValueError(f"bad key {API_KEY}")  #!secret-exposure
"#,
    );
    holds(
        "src/index.ts",
        r#"
const apiKey = process.env.API_KEY;
console.log("key", process.env.API_KEY); //!secret-exposure
console.error(`using ${apiKey}`); //!secret-exposure
console.log(`key: ${apiKey ? "set" : "missing"}`);
console.log(`key: ${apiKey.slice(0, 4)}…`, !!apiKey, apiKey.length);
console.log(JSON.stringify(process.env)); //!secret-exposure
if (!apiKey) throw new Error("API_KEY is missing");
throw new Error(`rejected: ${process.env.API_KEY}`); //!secret-exposure
server.tool("env", {}, async () => ({
  content: [{ type: "text", text: JSON.stringify(process.env, null, 2) }], //!secret-exposure
}));
app.get("/x", (req, res) => res.json({ client_secret: process.env.CLIENT_SECRET })); //!secret-exposure
const child = spawn("x", [], { env: { ...process.env, A: "1" } });
function masked(key: string) { return key.slice(-4); }
console.log(masked(apiKey));
"#,
    );
}
