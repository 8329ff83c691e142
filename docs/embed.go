// Package docs carries the documents that the program itself serves.
package docs

import _ "embed"

// OpenAPI is the OpenAPI 3.1 description of the HTTP API, in JSON.
//
//go:embed openapi.json
var OpenAPI []byte
