package gpu

import "fmt"

// applicationXids are the errors that a program brings upon itself: the GPU is
// fine for the next one. Every other Xid takes the device away until an operator
// has looked at it. (The list is the one that NVIDIA's own device plugin uses.)
var applicationXids = map[uint64]bool{13: true, 31: true, 43: true, 45: true, 68: true, 109: true}

// xidText names the errors that are seen most, in NVIDIA's words.
var xidText = map[uint64]string{
	13:  "graphics engine exception",
	31:  "GPU memory page fault",
	32:  "invalid or corrupted push buffer stream",
	38:  "driver firmware error",
	43:  "GPU stopped processing",
	45:  "preemptive cleanup, due to previous errors",
	48:  "double bit ECC error",
	61:  "internal micro-controller breakpoint or warning",
	62:  "internal micro-controller halt",
	63:  "ECC page retirement or row remapping",
	64:  "ECC page retirement or row remapping failed",
	68:  "video processor exception",
	69:  "graphics engine class error",
	74:  "NVLink error",
	79:  "GPU has fallen off the bus",
	92:  "high single-bit ECC error rate",
	94:  "contained ECC error",
	95:  "uncontained ECC error",
	109: "context switch timeout",
	119: "GSP RPC timeout",
	120: "GSP error",
	140: "unrecovered ECC error",
	999: "unknown error",
}

// xidFault says what an Xid on a device means.
func xidFault(device string, xid uint64) Fault {
	text := xidText[xid]
	if text == "" {
		text = "see NVIDIA's Xid catalog"
	}
	f := Fault{Device: device, Xid: int(min(xid, 1<<31-1)), Fatal: !applicationXids[xid]}
	if f.Fatal {
		f.Message = fmt.Sprintf("Xid %d: %s; reset the GPU or reboot the host, then restart the agent", xid, text)
	} else {
		f.Message = fmt.Sprintf("Xid %d: %s (an error of the program on the GPU, the GPU itself is fine)", xid, text)
	}
	return f
}
