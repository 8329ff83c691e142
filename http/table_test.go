package http

import (
	"go/ast"
	"go/parser"
	"go/token"
	"strconv"
	"testing"
)

// TestEveryErrorHasARow reads the errors that package command declares, so
// that none can be added without a status.
func TestEveryErrorHasARow(t *testing.T) {
	f, err := parser.ParseFile(token.NewFileSet(), "../command/errors.go", nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	codes := 0
	ast.Inspect(f, func(n ast.Node) bool {
		call, ok := n.(*ast.CallExpr)
		if !ok {
			return true
		}
		if name, ok := call.Fun.(*ast.Ident); !ok || name.Name != "sentinel" {
			return true
		}
		code, err := strconv.Unquote(call.Args[0].(*ast.BasicLit).Value)
		if err != nil {
			t.Fatal(err)
		}
		codes++
		if _, ok := table[code]; !ok {
			t.Errorf("%s has no row", code)
		}
		return true
	})
	if codes == 0 || codes != len(table) {
		t.Errorf("%d errors are declared, %d have rows", codes, len(table))
	}
}
