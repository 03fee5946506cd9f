//! DESCRIPTION

use rmcp::handler::server::wrapper::Parameters;
use rmcp::transport::stdio;
use rmcp::{ServiceExt as _, schemars, tool, tool_router};
use serde::Deserialize;

#[derive(Deserialize, schemars::JsonSchema)]
struct Greet {
    /// Who is greeted.
    name: String,
}

#[derive(Deserialize, schemars::JsonSchema)]
struct Add {
    a: f64,
    b: f64,
}

struct Server;

#[tool_router(server_handler)]
impl Server {
    #[tool(description = "Greets a person by name.")]
    async fn greet(&self, Parameters(Greet { name }): Parameters<Greet>) -> String {
        // stdout belongs to the protocol: what is to be read in `sigil logs` goes to stderr
        eprintln!("a greeting was asked for");
        format!("Hello, {name}!")
    }

    #[tool(description = "Adds two numbers.")]
    async fn add(&self, Parameters(Add { a, b }): Parameters<Add>) -> String {
        (a + b).to_string()
    }
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    Server.serve(stdio()).await?.waiting().await?;
    Ok(())
}
