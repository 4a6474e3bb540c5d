package chat

import (
	"regexp"
	"strconv"
	"strings"
)

// markName is the function that a marked template calls in every tag with the tag's line. It returns "".
const markName = "nha_line"

var (
	setTag  = regexp.MustCompile(`^(\s*set\s+[\w.]+\s*=)([^=].*)$`)
	testTag = regexp.MustCompile(`(?s)^(\s*(?:el)?if\s)(.*)$`)
)

// mark rewrites a template so that it notes the line of every tag that it comes to: {{ x }} becomes {{ nha_line(7) ~ (x) }},
// {% if x %} becomes {% if nha_line(7) or (x) %}, and what is set to x is set to (x) if nha_line(7) == "". It says where a
// template failed, no more: its text is thrown away.
func mark(source string) string {
	var b strings.Builder
	line := 1
	for {
		i := strings.Index(source, "{")
		if i < 0 || i+1 == len(source) {
			b.WriteString(source)
			return b.String()
		}
		b.WriteString(source[:i])
		line += strings.Count(source[:i], "\n")
		source = source[i:]
		n := tagEnd(source)
		tag := source[:n]
		source = source[n:]
		b.WriteString(markTag(tag, line))
		line += strings.Count(tag, "\n")
	}
}

// tagEnd returns the length of the tag or comment that s begins with, 1 if it is a brace of the text.
func tagEnd(s string) int {
	if s[1] == '#' {
		if i := strings.Index(s, "#}"); i >= 0 {
			return i + 2
		}
		return len(s)
	}
	if s[1] != '{' && s[1] != '%' {
		return 1
	}
	end, depth := "%}", 0
	if s[1] == '{' {
		end = "}}"
	}
	for i := 2; i < len(s); i++ {
		switch c := s[i]; {
		case c == '\'' || c == '"':
			for i++; i < len(s) && s[i] != c; i++ {
				if s[i] == '\\' {
					i++
				}
			}
		case depth == 0 && strings.HasPrefix(s[i:], end):
			return i + 2
		case c == '{':
			depth++
		case c == '}' && depth > 0:
			depth--
		}
	}
	return len(s)
}

func markTag(tag string, line int) string {
	if len(tag) < 4 || tag[1] == '#' {
		return tag
	}
	open, body, end := tag[:2], tag[2:len(tag)-2], tag[len(tag)-2:]
	if body != "" && strings.ContainsRune("-+", rune(body[0])) {
		open, body = open+body[:1], body[1:]
	}
	if strings.HasSuffix(body, "-") || strings.HasSuffix(body, "+") {
		end, body = body[len(body)-1:]+end, body[:len(body)-1]
	}
	call := markName + "(" + strconv.Itoa(line)
	switch {
	case tag[1] == '{':
		body = " " + call + ") ~ (" + body + ") "
	case testTag.MatchString(body):
		m := testTag.FindStringSubmatch(body)
		body = m[1] + call + ") or (" + m[2] + ") "
	case setTag.MatchString(body):
		m := setTag.FindStringSubmatch(body)
		body = m[1] + " (" + m[2] + ") if " + call + ") == '' "
	}
	return open + body + end
}
