use super::*;

fn of(path: &str, source: &str) -> Outline {
    outline(&[(path, source)])
}

fn tools(path: &str, source: &str) -> Vec<(String, String, u32)> {
    of(path, source).tools.into_iter().map(|tool| (tool.name, tool.description, tool.line)).collect()
}

fn one(name: &str, description: &str, line: u32) -> Vec<(String, String, u32)> {
    vec![(name.to_owned(), description.to_owned(), line)]
}

/// Name, secret, required.
fn reads(path: &str, source: &str) -> Vec<(String, bool, bool)> {
    of(path, source).reads.into_iter().map(|read| (read.name, read.secret, read.required)).collect()
}

fn read(name: &str, secret: bool, required: bool) -> Vec<(String, bool, bool)> {
    vec![(name.to_owned(), secret, required)]
}

#[test]
fn python_offers_tools_by_decorators_lists_and_calls() {
    let fast =
        "@mcp.tool()\nasync def a(x: int) -> int:\n    '''Does a.\n    Twice.\n\n    Args: x\n    '''\n    return x\n";
    assert_eq!(tools("s.py", fast), one("a", "Does a. Twice.", 2));
    assert_eq!(
        tools("s.py", "@server.tool(name='b', description='Does ' 'b')\ndef f(): pass\n"),
        one("b", "Does b", 2)
    );
    assert_eq!(tools("s.py", "@mcp.tool\ndef c(): pass\n"), one("c", "", 2));
    assert_eq!(tools("s.py", "@mcp.resource('x://y')\ndef d(): pass\n@tool\ndef e(): pass\n"), []);
    let low = "return [types.Tool(name='f', description='Does f', inputSchema={'type': 'object'})]\n";
    assert_eq!(tools("s.py", low), one("f", "Does f", 1));
    assert_eq!(tools("s.py", "def g():\n    'Does g'\nmcp.add_tool(g)\n"), one("g", "Does g", 3));
}

#[test]
fn scripts_offer_tools_by_calls_and_lists() {
    let new = "server.registerTool('a', { title: 'A', description: 'Does a' }, async () => {});\n";
    assert_eq!(tools("s.ts", new), one("a", "Does a", 1));
    assert_eq!(tools("s.js", "server.tool(\"b\", \"Does b\", { x: z.string() }, run)\n"), one("b", "Does b", 1));
    assert_eq!(tools("s.js", "server.tool('c')\nsomething('d', 'e')\n"), []);
    assert_eq!(tools("s.ts", "server.addTool({ name: 'f', description: `Does f`, execute })\n"), one("f", "Does f", 1));
    let low = "const TOOLS = [\n  { name: 'g', description: 'Does g',\n    inputSchema: { type: 'object', properties: { name: { description: 'no' } } } },\n];\n";
    assert_eq!(tools("s.ts", low), one("g", "Does g", 2));
    assert_eq!(tools("s.test.ts", new), []);
    assert_eq!(tools("node_modules/x/s.js", new), []);
}

#[test]
fn go_and_rust_offer_tools_too() {
    let official =
        "package main\nfunc main() {\n\tmcp.AddTool(server, &mcp.Tool{Name: \"a\", Description: \"Does a\"}, run)\n}\n";
    assert_eq!(tools("main.go", official), one("a", "Does a", 3));
    let other = "package main\nvar t = mcp.NewTool(\"b\", mcp.WithDescription(\"Does b\"), mcp.WithString(\"x\", mcp.Description(\"no\")))\n";
    assert_eq!(tools("main.go", other), one("b", "Does b", 2));
    let rust = "impl S {\n    #[tool(description = \"Does (c) \\\"well\\\"\")]\n    async fn c(&self) {}\n    /// Does d\n    #[tool]\n    pub fn d(&self) {}\n    // #[tool] fn e() {}\n}\n";
    let found = tools("src/main.rs", rust);
    assert_eq!(found[0], ("c".to_owned(), "Does (c) \"well\"".to_owned(), 2));
    assert_eq!(found[1], ("d".to_owned(), "Does d".to_owned(), 5));
    assert_eq!(found.len(), 2);
}

#[test]
fn variables_are_required_where_nothing_stands_in_for_them() {
    assert_eq!(reads("s.py", "import os\nx = os.environ['API_KEY']\n"), read("API_KEY", true, true));
    assert_eq!(reads("s.py", "x = os.getenv('GITHUB_TOKEN')\nif not x: raise E\n"), read("GITHUB_TOKEN", true, true));
    assert_eq!(reads("s.py", "x = os.environ.get('A_URL', 'http://x')\n"), read("A_URL", false, false));
    assert_eq!(reads("s.py", "x = os.getenv('A_URL', None)\n"), read("A_URL", false, true));
    assert_eq!(reads("s.py", "x = os.getenv('DB_PASSWORD') or 'x'\n"), read("DB_PASSWORD", true, false));
    assert_eq!(reads("s.py", "os.environ['SET_KEY'] = '1'\n"), []);
    assert_eq!(reads("s.ts", "const k = process.env.OPENAI_API_KEY!;\n"), read("OPENAI_API_KEY", true, true));
    assert_eq!(reads("s.ts", "if (!process.env.A_TOKEN) throw new Error('x');\n"), read("A_TOKEN", true, true));
    assert_eq!(reads("s.ts", "if (process.env.A_TOKEN) use(it);\n"), read("A_TOKEN", true, false));
    assert_eq!(reads("s.ts", "const n = Number(process.env['LIMIT']) || 5;\n"), read("LIMIT", false, false));
    assert_eq!(reads("s.ts", "const { B_KEY, C = 'x' } = process.env;\n").len(), 2);
    assert_eq!(reads("s.ts", "process.env.SET_KEY = 'x';\n"), []);
    assert_eq!(reads("main.go", "package main\nvar k = os.Getenv(\"A_SECRET\")\n"), read("A_SECRET", true, true));
    assert_eq!(
        reads("main.go", "package main\nfunc f() { k, ok := os.LookupEnv(\"A_SECRET\") }\n"),
        read("A_SECRET", true, false)
    );
    assert_eq!(reads("src/main.rs", "let k = std::env::var(\"A_KEY\")?;\n"), read("A_KEY", true, true));
    assert_eq!(
        reads("src/main.rs", "let k = std::env::var(\"A_KEY\").unwrap_or_default();\n"),
        read("A_KEY", true, false)
    );
}

#[test]
fn what_every_system_sets_is_not_asked_for_and_each_is_told_once() {
    assert_eq!(
        reads("s.ts", "const p = process.env.PORT; const h = process.env.HOME; process.env.NODE_ENV === 'x'\n"),
        []
    );
    let twice = "a = process.env.X_KEY;\nb = process.env.X_KEY ?? 'y';\n";
    assert_eq!(reads("s.ts", twice), read("X_KEY", true, false));
    assert_eq!(of("s.ts", twice).reads[0].line, 1);
    // data that is no name is not one
    assert_eq!(reads("s.py", "os.environ['a b\\nc']\n"), []);
}
