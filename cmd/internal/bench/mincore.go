package bench

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// mincore is the system call, which golang.org/x/sys does not wrap: in gets one byte
// for each page of data, whose lowest bit says that the page is in memory.
func mincore(data, in []byte) error {
	_, _, errno := unix.Syscall(unix.SYS_MINCORE, uintptr(unsafe.Pointer(&data[0])), uintptr(len(data)), uintptr(unsafe.Pointer(&in[0])))
	if errno != 0 {
		return errno
	}
	return nil
}
