// Continues a text with a model file, piece by piece: stream MODEL TEXT N_TOKENS
//
//	go run . MODEL TEXT N_TOKENS
package main

// #cgo pkg-config: tidbit
// #include <stdlib.h>
// #include <tidbit.h>
import "C"

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"strconv"
	"unsafe"
)

// check turns a status into an error.
func check(status C.tidbit_status) error {
	if status == C.TIDBIT_OK {
		return nil
	}
	return errors.New(C.GoString(C.tidbit_last_error(nil)))
}

// text is a string for the time of a call.
func text(s string) (*C.char, C.size_t, func()) {
	data := C.CString(s)
	return data, C.size_t(len(s)), func() { C.free(unsafe.Pointer(data)) }
}

func run(path, prompt string, nTokens int) error {
	// The message of a failure belongs to the thread, and goroutines move between threads.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()

	var options *C.tidbit_options
	if err := check(C.tidbit_options_new(&options)); err != nil {
		return err
	}
	defer C.tidbit_options_free(options)
	key, keyLength, free := text("sampling.temperature")
	defer free()
	if err := check(C.tidbit_options_set_float(options, key, keyLength, 0)); err != nil {
		return err
	}

	var model *C.tidbit_model
	file, fileLength, free := text(path)
	defer free()
	if err := check(C.tidbit_model_open(file, fileLength, options, &model)); err != nil {
		return err
	}
	defer C.tidbit_model_free(model)

	var session *C.tidbit_session
	if err := check(C.tidbit_session_new(model, options, &session)); err != nil {
		return err
	}
	defer C.tidbit_session_free(session)
	start, startLength, free := text(prompt)
	defer free()
	if err := check(C.tidbit_session_append_text(session, start, startLength, nil)); err != nil {
		return err
	}

	fmt.Print(prompt)
	var piece [256]byte
	for i := 0; i < nTokens; i++ {
		var length C.size_t
		status := C.tidbit_session_next(session, nil, (*C.char)(unsafe.Pointer(&piece[0])), C.size_t(len(piece)), &length)
		if status != C.TIDBIT_END {
			if err := check(status); err != nil {
				return err
			}
		}
		os.Stdout.Write(piece[:length])
		if status == C.TIDBIT_END {
			break
		}
	}
	fmt.Println()
	return nil
}

func main() {
	if len(os.Args) != 4 {
		fmt.Fprintln(os.Stderr, "usage: stream MODEL TEXT N_TOKENS")
		os.Exit(2)
	}
	nTokens, err := strconv.Atoi(os.Args[3])
	if err == nil {
		err = run(os.Args[1], os.Args[2], nTokens)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "error:", err)
		os.Exit(1)
	}
}
