//go:build !cgo || !linux

package gpu

func openNVML(Options) (Inventory, error) { return nil, errNoCgo }
