package model

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// Find turns what a user calls a model into a path for Load: a model directory, a .gguf file, or the org/name of a model that
// Hugging Face's tools have already put into their cache ($HF_HUB_CACHE, $HF_HOME/hub or ~/.cache/huggingface/hub). Nothing is
// downloaded.
func Find(name string) (string, error) {
	if info, err := os.Stat(name); err == nil {
		switch {
		case Exists(name):
			return name, nil
		case info.IsDir():
			return onlyGGUF(name)
		}
		return "", fmt.Errorf("%s is no GGUF file: give a model directory, a .gguf file, or org/name of a model in the Hugging Face cache", name)
	}
	org, model, ok := strings.Cut(name, "/")
	if !ok || org == "" || model == "" || strings.ContainsAny(name, `\ `) || strings.Contains(model, "/") || strings.HasPrefix(name, ".") {
		return "", fmt.Errorf("no model %s: give a model directory, a .gguf file, or org/name of a model in the Hugging Face cache", name)
	}
	hub, err := hubCache()
	if err != nil {
		return "", err
	}
	repository := filepath.Join(hub, "models--"+org+"--"+model)
	snapshot, err := newestSnapshot(repository)
	if err != nil {
		return "", fmt.Errorf("no model %s: neither a directory or file of that name nor in the Hugging Face cache (%s): %w", name, hub, err)
	}
	if Exists(snapshot) {
		return snapshot, nil
	}
	return onlyGGUF(snapshot)
}

func hubCache() (string, error) {
	if dir := os.Getenv("HF_HUB_CACHE"); dir != "" {
		return dir, nil
	}
	if dir := os.Getenv("HF_HOME"); dir != "" {
		return filepath.Join(dir, "hub"), nil
	}
	home, err := os.UserHomeDir()
	if err != nil {
		return "", fmt.Errorf("where the Hugging Face cache is: %w: set HF_HOME", err)
	}
	return filepath.Join(home, ".cache", "huggingface", "hub"), nil
}

// newestSnapshot is the one that refs/main names, else the youngest.
func newestSnapshot(repository string) (string, error) {
	if commit, err := os.ReadFile(filepath.Join(repository, "refs", "main")); err == nil {
		dir := filepath.Join(repository, "snapshots", strings.TrimSpace(string(commit)))
		if _, err := os.Stat(dir); err == nil {
			return dir, nil
		}
	}
	list, err := os.ReadDir(filepath.Join(repository, "snapshots"))
	if err != nil {
		return "", err
	}
	newest, dir := int64(-1), ""
	for _, e := range list {
		if info, err := e.Info(); err == nil && e.IsDir() && info.ModTime().UnixNano() > newest {
			newest, dir = info.ModTime().UnixNano(), filepath.Join(repository, "snapshots", e.Name())
		}
	}
	if dir == "" {
		return "", fmt.Errorf("%s holds no snapshot", repository)
	}
	return dir, nil
}

// onlyGGUF is the .gguf file of a directory without config.json, where there is just one.
func onlyGGUF(dir string) (string, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return "", err
	}
	var list []string
	for _, e := range entries {
		if strings.HasSuffix(e.Name(), ".gguf") {
			list = append(list, filepath.Join(dir, e.Name()))
		}
	}
	switch len(list) {
	case 0:
		return "", fmt.Errorf("no model in %s: neither config.json nor a .gguf file", dir)
	case 1:
		return list[0], nil
	}
	return "", fmt.Errorf("%s holds %d .gguf files: name one of them, such as %s", dir, len(list), list[0])
}
