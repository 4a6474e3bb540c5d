# What people and CI call. Nothing here needs more than Go.
export CGO_ENABLED = 0

build: ## the binary, here
	go build -trimpath -ldflags='-s -w' -o nha ./cmd/nha

test: ## everything a change must pass, under five minutes
	go test ./...

generate: ## assembly from its generators; leaves no diff
	cd backend/cpu/kernel/_asm && for g in gemm vector slots quant ring; do go run ./$$g -out ../$${g}_amd64.s -stubs ../$${g}_amd64.go -pkg kernel || exit 1; done

bench: ## the op table and the kernels, medians of go test's benchmarks
	go test -run '^$$' -bench . ./backend/...

lint: ## what CI holds the code to besides its tests
	test -z "$$(gofmt -l .)"
	go vet ./...
	go run honnef.co/go/tools/cmd/staticcheck@v0.8.2 ./...

families-truth: ## pretrained families against the transformers library, 20 random models (PyPI, 6 GB, once)
	scripts/families-truth/run --models 20

gguf-truth: ## GGUF files and quantised blocks against gguf-py, half a minute (PyPI once)
	scripts/gguf-truth/run

fuzz: ## half a minute for every fuzz target
	scripts/fuzz 30s

cross: ## all six systems; the binaries go nowhere
	for os in linux darwin windows; do for arch in amd64 arm64; do \
		echo $$os/$$arch; GOOS=$$os GOARCH=$$arch go build -o /dev/null ./cmd/nha || exit 1; done; done

arm64: ## the kernels' tests for linux/arm64 under qemu-user
	GOARCH=arm64 go test -exec 'qemu-aarch64 -cpu max' -short ./backend/cpu/kernel

eval-truth: ## nha eval beside lm-evaluation-harness on a tiny model; needs Python and PyPI once
	scripts/eval-truth/run

page-test: ## the pages of bench and report in a headless Chromium (Debian's package, installed where it is missing), a minute
	scripts/page-test/run

.PHONY: page-test eval-truth build test generate bench lint families-truth gguf-truth fuzz cross arm64
