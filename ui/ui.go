// Package ui holds the web page that the HTTP API serves at /ui/. The page
// shows the sites and their servers, and browses and edits keys. It is a
// client of the public API like any other, and loads nothing from elsewhere.
package ui

import "embed"

// Files are the page, index.html, and its parts.
//
//go:embed index.html app.js style.css icon.svg
var Files embed.FS
