//! Servers in Go.

use super::holds;

#[test]
fn commands() {
    holds(
        "main.go",
        r##"
package main

import (
	"context"
	"fmt"
	"os/exec"
	"strings"

	"github.com/mark3labs/mcp-go/mcp"
)

func ping(ctx context.Context, request mcp.CallToolRequest) (*mcp.CallToolResult, error) {
	host, err := request.RequireString("host")
	if err != nil {
		return mcp.NewToolResultError(err.Error()), nil
	}
	exec.Command("sh", "-c", "ping "+host).Run() //!command-injection
	exec.CommandContext(ctx, "bash", "-c", fmt.Sprintf("ping %s", host)).Run() //!command-injection
	exec.Command("ping", host).Run()
	count := request.GetInt("count", 4)
	exec.Command("sh", "-c", fmt.Sprintf("ping -c %d x", count)).Run()
	return mcp.NewToolResultText("x"), nil
}

func gitLog(ctx context.Context, request mcp.CallToolRequest) (*mcp.CallToolResult, error) {
	args := request.GetArguments()
	ref := args["ref"].(string)
	exec.Command("git", "log", ref).Run() //!argument-injection
	exec.Command("git", "log", "--", ref).Run()
	argv := []string{"log"}
	argv = append(argv, ref)
	exec.Command("git", argv...).Run() //!argument-injection
	if strings.HasPrefix(ref, "-") {
		return nil, fmt.Errorf("no")
	}
	exec.Command("git", "log", ref).Run()
	return run(ref), nil
}

func run(ref string) *mcp.CallToolResult {
	exec.Command("sh", "-c", "git log "+ref).Run() //!command-injection
	return nil
}

type Input struct {
	Name  string `json:"name"`
	Count int    `json:"count"`
}

func typed(ctx context.Context, req *mcp.CallToolRequest, in Input) (*mcp.CallToolResult, any, error) {
	exec.Command("sh", "-c", fmt.Sprintf("x %s %d", in.Name, in.Count)).Run() //!command-injection
	exec.Command("sh", "-c", fmt.Sprintf("x %d", in.Count)).Run()
	return nil, nil, nil
}
"##,
    );
}

#[test]
fn paths_addresses_and_queries() {
    holds(
        "main.go",
        r##"
package main

import (
	"database/sql"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
)

var name = regexp.MustCompile(`^[a-z]+$`)

func read(w http.ResponseWriter, r *http.Request) {
	file := r.URL.Query().Get("file")
	os.ReadFile(file) //!path-traversal
	full := filepath.Join("/data", file)
	os.Open(full) //!path-traversal
	clean := filepath.Clean(filepath.Join("/data", file))
	if !strings.HasPrefix(clean, "/data") {
		return
	}
	os.Open(clean) //!path-traversal
	if !strings.HasPrefix(clean, "/data"+string(os.PathSeparator)) {
		return
	}
	os.Open(clean)
	rel, err := filepath.Rel("/data", full)
	if err != nil || strings.HasPrefix(rel, "..") {
		return
	}
	os.Open(full)
	os.Open(filepath.Join("/data", filepath.Base(file)))
}

func fetch(w http.ResponseWriter, r *http.Request) {
	var body struct{ URL string }
	json.NewDecoder(r.Body).Decode(&body)
	http.Get(body.URL) //!ssrf
	http.Get("https://example.org/" + body.URL)
	req, _ := http.NewRequest("GET", body.URL, nil) //!ssrf
	http.DefaultClient.Do(req)
}

func query(db *sql.DB, r *http.Request) {
	table := r.FormValue("table")
	db.Query(fmt.Sprintf("SELECT * FROM %s", table)) //!sql-injection
	db.Query("SELECT * FROM t WHERE a = ?", table)
	if !name.MatchString(table) {
		return
	}
	db.Query("SELECT * FROM " + table)
}
"##,
    );
}
