package data

import (
	"context"
	"fmt"
	"log"
	"os"
	"path/filepath"
)

// Two documents, packed into rows of eight tokens: every row is full, and no sequence holds letters of both.
func Example() {
	dir, err := os.MkdirTemp("", "nha-example-")
	if err != nil {
		log.Fatal(err)
	}
	defer os.RemoveAll(dir)
	file := filepath.Join(dir, "words.jsonl")
	if err := os.WriteFile(file, []byte("{\"text\":\"abc\"}\n{\"text\":\"defghijkl\"}\n"), 0o644); err != nil {
		log.Fatal(err)
	}
	spec := Spec{Paths: []string{file}}
	dataset, err := Prepare(context.Background(), spec, letters{}, Options{CacheDir: filepath.Join(dir, "cache")})
	if err != nil {
		log.Fatal(err)
	}
	defer dataset.Close()
	loader, err := NewLoader(dataset.All(), LoaderOptions{Context: 8, Batch: 1, Once: true})
	if err != nil {
		log.Fatal(err)
	}
	for batch := new(Batch); loader.Next(batch); {
		fmt.Println(batch.Tokens, batch.Targets, batch.Lengths)
	}
	// Output:
	// [97 98 99 256 100 101 102 103] [98 99 256 -1 101 102 103 104] [4 4]
	// [104 105 106 107 108 256 97 98] [105 106 107 108 256 -1 -1 -1] [6 2]
}
