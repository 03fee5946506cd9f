// DESCRIPTION
//
// An MCP server over stdio without dependencies: newline-delimited JSON-RPC, a message a line.
package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"os"
)

type request struct {
	ID     json.RawMessage `json:"id"`
	Method string          `json:"method"`
	Params struct {
		ProtocolVersion string          `json:"protocolVersion"`
		Name            string          `json:"name"`
		Arguments       json.RawMessage `json:"arguments"`
	} `json:"params"`
}

type object map[string]any

var tools = []object{
	{
		"name":        "greet",
		"description": "Greets a person by name.",
		"inputSchema": object{
			"type":       "object",
			"properties": object{"name": object{"type": "string"}},
			"required":   []string{"name"},
		},
	},
	{
		"name":        "add",
		"description": "Adds two numbers.",
		"inputSchema": object{
			"type":       "object",
			"properties": object{"a": object{"type": "number"}, "b": object{"type": "number"}},
			"required":   []string{"a", "b"},
		},
	},
}

// call runs a tool; an error is told to the model, which may try again.
func call(name string, arguments json.RawMessage) (string, error) {
	switch name {
	case "greet":
		var given struct{ Name string }
		if err := json.Unmarshal(arguments, &given); err != nil {
			return "", err
		}
		// stdout belongs to the protocol: what is to be read in `sigil logs` goes to stderr
		fmt.Fprintln(os.Stderr, "a greeting was asked for")
		return "Hello, " + given.Name + "!", nil
	case "add":
		var given struct{ A, B float64 }
		if err := json.Unmarshal(arguments, &given); err != nil {
			return "", err
		}
		return fmt.Sprint(given.A + given.B), nil
	}
	return "", fmt.Errorf("there is no tool %q", name)
}

func answer(r request) (object, string) {
	switch r.Method {
	case "initialize":
		version := r.Params.ProtocolVersion
		if version == "" {
			version = "2025-11-25"
		}
		return object{
			"protocolVersion": version,
			"capabilities":    object{"tools": object{}},
			"serverInfo":      object{"name": "NAME", "version": "0.1.0"},
		}, ""
	case "ping":
		return object{}, ""
	case "tools/list":
		return object{"tools": tools}, ""
	case "tools/call":
		text, err := call(r.Params.Name, r.Params.Arguments)
		if err != nil {
			text = err.Error()
		}
		return object{"content": []object{{"type": "text", "text": text}}, "isError": err != nil}, ""
	}
	return nil, "there is no method " + r.Method
}

func main() {
	lines := bufio.NewScanner(os.Stdin)
	lines.Buffer(nil, 16<<20)
	out := json.NewEncoder(os.Stdout)
	for lines.Scan() {
		var r request
		if err := json.Unmarshal(lines.Bytes(), &r); err != nil {
			fmt.Fprintln(os.Stderr, "not a message:", err)
			continue
		}
		if len(r.ID) == 0 {
			continue
		}
		reply := object{"jsonrpc": "2.0", "id": r.ID}
		if result, problem := answer(r); problem == "" {
			reply["result"] = result
		} else {
			reply["error"] = object{"code": -32601, "message": problem}
		}
		if err := out.Encode(reply); err != nil {
			os.Exit(1)
		}
	}
}
