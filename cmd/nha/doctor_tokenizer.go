package main

import (
	"fmt"

	"github.com/spf13/cobra"

	"nha/tokenizer"
)

// checkTokenizer holds a tokenizer against a file of cases and prints what differs.
func checkTokenizer(c *cobra.Command, name, cases string) error {
	t, err := loadTokenizer(name)
	if err != nil {
		return err
	}
	r, err := tokenizer.Check(t, cases)
	if err != nil {
		return fmt.Errorf("--cases %w", err)
	}
	if flags.json {
		line := map[string]any{"tokenizer": name, "cases": r.Cases, "wrong": r.Wrong}
		if r.Wrong > 0 {
			line["first"] = r.First[0]
		}
		if err := printJSON(c, line); err != nil {
			return err
		}
	} else {
		for _, d := range r.First {
			fmt.Fprintf(c.OutOrStdout(), "%q\n  want %s\n  got  %s\n", d.Text, shown(d.Want), shown(d.Got))
		}
	}
	if r.Wrong > 0 {
		return fmt.Errorf("%s: %d of %d cases differ", name, r.Wrong, r.Cases)
	}
	if !flags.json {
		fmt.Fprintf(c.OutOrStdout(), "%s: all %d cases agree\n", name, r.Cases)
	}
	return nil
}

// shown is ids, or a text.
func shown(v any) string {
	if s, ok := v.(string); ok {
		return fmt.Sprintf("%q", s)
	}
	return fmt.Sprint(v)
}
