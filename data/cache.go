package data

import (
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"hash/crc32"
	"io"
	"unsafe"

	"nha/mapfile"
)

// A cache file is
//
//	head   64 bytes: magic, bytes per token (2 or 4), vocabulary, key
//	tokens uint16 or uint32, document after document; zeros up to a multiple of 8
//	pieces {tokens, bytes of text uint32} each; the top bit of tokens marks a piece that begins a document
//	tail   40 bytes: number of tokens, of pieces, of bytes of text; CRC-32C of all before; magic
//
// little-endian throughout. Pieces are a few kilobytes: they let a long document be cut in two and each half still know
// how many bytes of text it is, which bits per byte need.
const (
	headMagic = "nhatoks1"
	tailMagic = "1skotahn"
	headSize  = 64
	tailSize  = 40
	beginBit  = 1 << 31
)

// key says which text was encoded, and how.
type key [32]byte

func (k key) String() string { return hex.EncodeToString(k[:]) }

// piece is a stretch of a document: its tokens and the bytes of text they stand for.
type piece struct {
	tokens, bytes int
	begins        bool // a document begins here
}

// tokenWidth is the bytes of a token in the file.
func tokenWidth(vocabulary int) int {
	if vocabulary <= 1<<16 {
		return 2
	}
	return 4
}

// cacheWriter writes a cache file front to back.
type cacheWriter struct {
	w      io.Writer
	sum    hash.Hash32
	width  int
	buffer []byte
	pieces []uint32
	tokens uint64
	text   uint64
}

func newCacheWriter(w io.Writer, k key, vocabulary int) (*cacheWriter, error) {
	c := &cacheWriter{sum: crc32.New(crc32.MakeTable(crc32.Castagnoli)), width: tokenWidth(vocabulary)}
	c.w = io.MultiWriter(w, c.sum)
	head := make([]byte, headSize)
	copy(head, headMagic)
	binary.LittleEndian.PutUint64(head[8:], uint64(c.width))
	binary.LittleEndian.PutUint64(head[16:], uint64(vocabulary))
	copy(head[24:], k[:])
	_, err := c.w.Write(head)
	return c, err
}

// add appends pieces and their tokens.
func (c *cacheWriter) add(pieces []piece, tokens []int32) error {
	for _, p := range pieces {
		n := uint32(p.tokens)
		if p.begins {
			n |= beginBit
		}
		c.pieces = append(c.pieces, n, uint32(p.bytes))
		c.text += uint64(p.bytes)
	}
	c.tokens += uint64(len(tokens))
	c.buffer = c.buffer[:0]
	for _, t := range tokens {
		if c.width == 2 {
			c.buffer = binary.LittleEndian.AppendUint16(c.buffer, uint16(t))
		} else {
			c.buffer = binary.LittleEndian.AppendUint32(c.buffer, uint32(t))
		}
	}
	_, err := c.w.Write(c.buffer)
	return err
}

// finish writes the pieces and the tail.
func (c *cacheWriter) finish() error {
	b := make([]byte, -int(c.tokens)*c.width&7)
	for _, p := range c.pieces {
		b = binary.LittleEndian.AppendUint32(b, p)
	}
	b = binary.LittleEndian.AppendUint64(b, c.tokens)
	b = binary.LittleEndian.AppendUint64(b, uint64(len(c.pieces)/2))
	b = binary.LittleEndian.AppendUint64(b, c.text)
	if _, err := c.w.Write(b); err != nil {
		return err
	}
	tail := binary.LittleEndian.AppendUint64(nil, uint64(c.sum.Sum32()))
	_, err := c.w.Write(append(tail, tailMagic...))
	return err
}

// errDamaged is why a cache file cannot be used: the cure is to write it again.
type errDamaged string

func (e errDamaged) Error() string { return string(e) }

// openCache maps a cache file and checks all of it. The error is errDamaged when the file is there but wrong.
func openCache(path string, want key) (*Dataset, error) {
	file, unmap, err := mapfile.Open(path)
	if err != nil {
		return nil, err
	}
	d := &Dataset{key: want, unmap: unmap}
	if err := d.parse(file); err != nil {
		return nil, errors.Join(err, unmap())
	}
	return d, nil
}

// parse sets the dataset's views on the file.
func (d *Dataset) parse(file []byte) error {
	if len(file) < headSize+tailSize || string(file[:8]) != headMagic || string(file[len(file)-8:]) != tailMagic {
		return errDamaged("truncated, or not a token cache")
	}
	head, tail := file[:headSize], file[len(file)-tailSize:]
	sum := crc32.Checksum(file[:len(file)-16], crc32.MakeTable(crc32.Castagnoli))
	if uint64(sum) != binary.LittleEndian.Uint64(tail[24:]) {
		return errDamaged("checksum differs")
	}
	if key(head[24:56]) != d.key {
		return errDamaged("written for other data or another tokenizer")
	}
	width := binary.LittleEndian.Uint64(head[8:])
	vocabulary := binary.LittleEndian.Uint64(head[16:])
	tokens := binary.LittleEndian.Uint64(tail)
	pieces := binary.LittleEndian.Uint64(tail[8:])
	body := uint64(len(file) - headSize - tailSize)
	if vocabulary > 1<<31 || width != uint64(tokenWidth(int(vocabulary))) || tokens > body/width || pieces > body/8 ||
		(tokens*width+7)&^7+pieces*8 != body {
		return errDamaged("lengths do not fit together")
	}
	d.vocabulary = int(vocabulary)
	if tokens > 0 && width == 2 {
		d.narrow = unsafe.Slice((*uint16)(unsafe.Pointer(&file[headSize])), tokens)
	} else if tokens > 0 {
		d.wide = unsafe.Slice((*uint32)(unsafe.Pointer(&file[headSize])), tokens)
	}
	d.pieces = file[len(file)-tailSize-int(pieces)*8 : len(file)-tailSize]
	return d.index(int64(tokens))
}

// index finds the documents among the pieces.
func (d *Dataset) index(tokens int64) error {
	at := int64(0)
	for i := range d.pieceCount() {
		p := d.piece(i)
		if p.begins {
			d.documents = append(d.documents, document{from: at, piece: i})
		}
		if len(d.documents) == 0 {
			return errDamaged("the first piece begins no document")
		}
		at += int64(p.tokens)
		last := &d.documents[len(d.documents)-1]
		last.to = at
		last.bytes += int64(p.bytes)
	}
	if at != tokens {
		return errDamaged(fmt.Sprintf("the pieces count %d tokens of %d", at, tokens))
	}
	return nil
}
