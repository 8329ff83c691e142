package http

import (
	"io/fs"
	"mime"
	nethttp "net/http"
	"path"
	"strings"

	"github.com/holdfast-db/holdfast/ui"
)

// pagePolicy lets the page load its own parts and nothing else.
const pagePolicy = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; " +
	"base-uri 'none'; form-action 'none'; frame-ancestors 'none'"

// getRoot leads people with a browser to the page. Programs get the 404 they
// expect.
func (s *Server) getRoot(x *exchange) {
	x.w.Header()["Vary"] = []string{"Accept"}
	if strings.Contains(headerValue(x.r.Header, "Accept"), "text/html") {
		s.redirectUI(x)
		return
	}
	s.noRoute(x)
}

func (s *Server) redirectUI(x *exchange) {
	x.w.Header()["Location"] = []string{"/ui/"}
	x.replyEmpty(nethttp.StatusFound)
}

// getUI serves the page and its parts.
func (s *Server) getUI(x *exchange) {
	if x.r.URL.Path == "/ui" {
		s.redirectUI(x)
		return
	}
	name := strings.TrimPrefix(x.r.URL.Path, "/ui/")
	if name == "" {
		name = "index.html"
	}
	content, err := fs.ReadFile(ui.Files, name)
	if err != nil {
		s.noRoute(x)
		return
	}
	h := x.w.Header()
	h["Content-Security-Policy"] = []string{pagePolicy}
	h["X-Content-Type-Options"] = headNoSniff
	h["Referrer-Policy"] = []string{"no-referrer"}
	h["Cache-Control"] = []string{"no-cache"}
	x.out = append(x.out, content...)
	x.reply(nethttp.StatusOK, []string{mime.TypeByExtension(path.Ext(name))})
}
