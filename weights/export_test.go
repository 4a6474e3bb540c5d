package weights

// NewGGUF opens the bytes of a GGUF file, whose address must suit every element type.
var NewGGUF = newGGUF
