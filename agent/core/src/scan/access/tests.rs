use crate::scan::{scan, told};

fn holds(path: &str, text: &str) {
    told::holds(path, text, &["missing-authorization", "over-broad-permissions"]);
}

#[test]
fn routes_that_forgot() {
    holds(
        "src/app.ts",
        r#"
import express from "express";
app.post("/mcp", requireAuth, handlePost);
app.get("/mcp", requireAuth, handleGet);
app.delete("/mcp", (req, res) => transports[req.params.id].close()); //!missing-authorization
app.get("/health", (req, res) => res.send("ok"));
app.post("/admin/reset", (req, res) => reset()); //!missing-authorization
app.get("/page", (req, res) => res.send("page"));
"#,
    );
    holds(
        "src/all.ts",
        r#"
import express from "express";
app.use(requireAuth);
app.post("/mcp", requireAuth, handlePost);
app.delete("/mcp", handleDelete);
"#,
    );
    holds(
        "app.py",
        r#"
from fastapi import Depends, FastAPI
@app.post("/tools/call")
async def call(user=Depends(get_current_user)):
    return 1

@app.delete("/tools/{name}")  #!missing-authorization
async def remove(name: str):
    return 1
"#,
    );
}

#[test]
fn roles_that_callers_claim() {
    holds(
        "server.py",
        r#"
@mcp.tool()
def delete_all(role: str) -> str:
    if role == "admin":  #!missing-authorization
        return wipe()
    return "no"

@mcp.tool()
def careful(ctx: Context) -> str:
    if ctx.user.role == "admin":
        return wipe()
    return "no"
"#,
    );
}

#[test]
fn rights_that_are_too_wide() {
    holds(
        "server.py",
        r#"
os.chmod(path, 0o777)  #!over-broad-permissions
os.chmod(path, 0o600)
SCOPES = ["*"]  #!over-broad-permissions
SCOPES = ["https://www.googleapis.com/auth/drive.readonly"]
client.containers.run("x", privileged=True)  #!over-broad-permissions
subprocess.run(["docker", "run", "-v", "/var/run/docker.sock:/var/run/docker.sock", "x"])  #!over-broad-permissions
"#,
    );
    let compose = "services:\n  a:\n    image: x\n    privileged: true\n    volumes:\n      - /var/run/docker.sock:/var/run/docker.sock\n      - ./data:/data\n    cap_add:\n      - SYS_ADMIN\n      - NET_BIND_SERVICE\n  b:\n    image: y\n    read_only: true\n";
    let lines: Vec<u32> = scan(&[("docker-compose.yml", compose)]).findings.iter().map(|f| f.line).collect();
    assert_eq!(lines, [4, 6, 9]);
}
