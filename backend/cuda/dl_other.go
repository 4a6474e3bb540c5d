//go:build !linux || !(amd64 || arm64)

package cuda

import (
	"errors"
	"runtime"
)

const supported = "the cuda backend runs on linux/amd64 and linux/arm64, this is " + runtime.GOOS + "/" + runtime.GOARCH + ": use --backend cpu"

func openLibrary(string) (uintptr, error) { return 0, errors.New(supported) }

func symbol(uintptr, string) (uintptr, error) { return 0, errors.New(supported) }

func call(uintptr, ...uintptr) uintptr { panic("cuda: call on " + runtime.GOOS) }
