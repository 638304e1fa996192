package access

// The units (OU) of certificates that are not roles.
const (
	UnitAgent       = "agent"
	UnitCoordinator = "coordinator"
)

// Server is what a server lets which role do, and what the units of certificates
// amount to there.
type Server struct {
	// Need is the role that a route needs, by its http.ServeMux pattern. A route that
	// is not here needs Admin. A test of each server holds the list against its routes.
	Need map[string]Role
	// Units gives the certificates of warmd's own processes a role.
	Units map[string]Role
}

// Agent is every agent. Coordinators do there whatever they were asked to, and have
// asked for the caller's role themselves.
var Agent = Server{
	Units: map[string]Role{UnitCoordinator: Admin, UnitAgent: Read},
	Need: map[string]Role{
		"GET /v1/placements":             Read,
		"GET /v1/placements/{id}":        Read,
		"PUT /v1/placements/{id}":        Place,
		"DELETE /v1/placements/{id}":     Place,
		"POST /v1/placements/{id}/sleep": Place,
		"POST /v1/placements/{id}/wake":  Place,
		"GET /v1/placements/{id}/trace":  Read,
		"GET /v1/placements/{id}/logs":   Read,
		"GET /v1/traces":                 Read,
		"GET /v1/workers":                Read,
		"GET /v1/node":                   Read,
		"GET /v1/capacity":               Read,
		"GET /v1/nodes":                  Read,
		"GET /v1/events":                 Read,
		"POST /v1/drain":                 Admin,
		"POST /v1/undrain":               Admin,
		"GET /metrics":                   Read,
		"GET /healthz":                   None,
	},
}

// Coordinator is every coordinator.
var Coordinator = Server{
	Units: map[string]Role{UnitCoordinator: Read, UnitAgent: Read},
	Need: map[string]Role{
		"GET /v1/placements":             Read,
		"POST /v1/placements":            Place,
		"GET /v1/placements/{id}":        Read,
		"DELETE /v1/placements/{id}":     Place,
		"POST /v1/placements/{id}/sleep": Place,
		"POST /v1/placements/{id}/wake":  Place,
		"GET /v1/placements/{id}/trace":  Read,
		"GET /v1/placements/{id}/logs":   Read,
		"GET /v1/traces":                 Read,
		"GET /v1/workers":                Read,
		"GET /v1/capacity":               Read,
		"GET /v1/nodes":                  Read,
		"POST /v1/nodes/{node}/drain":    Admin,
		"POST /v1/nodes/{node}/undrain":  Admin,
		"GET /v1/events":                 Read,
		"GET /v1/status":                 Read,
		"GET /metrics":                   Read,
		"GET /healthz":                   None,
	},
}
