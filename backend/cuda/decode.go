package cuda

import (
	"encoding/binary"
	"fmt"
	"math"
	"unsafe"

	"nha/attention"
	"nha/backend"
	"nha/tensor"
)

// Decoding on the card: a step is a graph, recorded once for a number of rows. States lie in seats, one block of memory for a sequence and
// all its layers; a table on the card says which seat a row of the step has, so sequences come and go by writing that table.
// A step's tokens and positions stay on the card for the next, which may be queued before the host has seen them.
//
// A seat's block holds, for every layer in turn, slot keys, slot values and a ring of W rows of keys, values and log gates in which token u lies in
// row u mod W. The rings of full windows come after all that and have as many rows as the seat has room for, which doubles.

// place is where a layer's state begins in a seat's block; a full layer's ring begins at keys + full * room.
type place struct {
	slotKeys, slotValues, keys, values, gates, full int
	isFull                                          bool
}

// decoder implements backend.Decoder.
type decoder struct {
	b        *Backend
	m        *backend.DecodeModel
	recorder *recorder
	places   []place
	fixed    int // bytes of a block before the rings of full windows
	perToken int // bytes of all those rings for a token
	seen     int // bytes of a seat's bits

	cos, sin arg
	ropeRows int
	order    arg // the table, [rows]
	ordered  []uint64
	seats    []*seat
	vacant   []int
	programs map[int]*program
	last     *program

	host    uintptr // page-locked, for results: [inFlight][rows][2]int32
	events  [inFlight]uintptr
	queued  int // steps so far
	taken   int // steps whose results were asked for
	counts  [inFlight]int
	scratch []byte
}

const (
	inFlight    = 8 // steps whose results may wait
	maxRows     = 256
	firstRoom   = 256
	seatBytes   = 96 // struct Seat
	seatAligned = 256
)

// seat is a sequence on the card.
type seat struct {
	record   uintptr // struct Seat, then the bits
	block    uintptr
	room     int
	position int
}

// program is a recorded step.
type program struct {
	exec    uintptr
	rows    int
	logits  arg
	results arg
	buffers []uintptr
}

// CompileDecode prepares decoding steps of a model in bf16.
func (b *Backend) CompileDecode(m *backend.DecodeModel) (backend.Decoder, error) {
	if b.dtype != tensor.BF16 {
		return nil, fmt.Errorf("%s decodes by plain calls", b.Name())
	}
	if err := decodable(m); err != nil {
		return nil, err
	}
	r, err := newRecorder(b.d)
	if err != nil {
		return nil, err
	}
	d := &decoder{b: b, m: m, recorder: r, programs: map[int]*program{}, seen: (m.Head.Rows() + 31) / 32 * 4}
	d.lay()
	b.op("decode")
	d.order = arg(b.d.alloc(8*maxRows, forScratch))
	d.ordered = make([]uint64, maxRows)
	b.d.fill(uintptr(d.order), 0, 8*maxRows)
	b.d.must(func() error {
		if err := b.d.driver.do(cuMemAllocHost, uintptr(unsafe.Pointer(&d.host)), inFlight*maxRows*8); err != nil {
			return err
		}
		for i := range d.events {
			if err := b.d.driver.do(cuEventCreate, uintptr(unsafe.Pointer(&d.events[i])), eventWithoutTiming); err != nil {
				return err
			}
		}
		return nil
	})
	return d, nil
}

// lay gives every layer its place.
func (d *decoder) lay() {
	at := 0
	take := func(bytes int) int {
		from := at
		at += (bytes + seatAligned - 1) / seatAligned * seatAligned
		return from
	}
	for i := range d.m.Blocks {
		c := d.m.Blocks[i].Attention
		p := place{isFull: c.Window == attention.Full}
		if !p.isFull {
			p.slotKeys, p.slotValues = take(4*c.KVHeads*c.Slots*c.KeyDim), take(4*c.KVHeads*c.Slots*c.ValueDim)
			p.keys, p.values = take(2*c.KVHeads*c.Window*c.KeyDim), take(2*c.KVHeads*c.Window*c.ValueDim)
			p.gates = take(4 * c.KVHeads * c.Window * c.Slots)
		}
		d.places = append(d.places, p)
	}
	d.fixed = at
	for i := range d.places {
		if p := &d.places[i]; p.isFull {
			c := d.m.Blocks[i].Attention
			p.keys, p.full = d.fixed, d.perToken
			d.perToken += c.KVHeads * (2*c.KeyDim + 2*c.ValueDim + 4*c.Slots)
		}
	}
}

// ring is where a layer's ring lies in a block with room for so many tokens: keys, values, gates, and its rows.
func (d *decoder) ring(layer, room int) (keys, values, gates, rows int) {
	p, c := d.places[layer], d.m.Blocks[layer].Attention
	if !p.isFull {
		return p.keys, p.values, p.gates, c.Window
	}
	keys = p.keys + p.full*room
	values = keys + 2*c.KVHeads*room*c.KeyDim
	return keys, values, values + 2*c.KVHeads*room*c.ValueDim, room
}

func (d *decoder) blockBytes(room int) int { return d.fixed + d.perToken*room }

// Rows is the most sequences of a step.
func (d *decoder) Rows() int { return maxRows }

// stretches calls f for every run of tokens of a ring that lie side by side here and there: the host's oldest token in row start of
// capacity, token u of the card in row u mod rows.
func stretches(first, count, start, capacity, rows int, f func(host, card, n int)) {
	for i := 0; i < count; {
		host, card := (start+i)%capacity, (first+i)%rows
		n := min(count-i, capacity-host, rows-card)
		f(host, card, n)
		i += n
	}
}

// move copies a layer between a host state and the bytes of a block.
func (d *decoder) move(layer, room int, s *attention.State, block []byte, up bool) {
	c, p := d.m.Blocks[layer].Attention, d.places[layer]
	copyPart := func(host tensor.Tensor, hostAt, at, n int, type_ tensor.DType) {
		card := tensor.FromBytes(type_, tensor.Of(n), block[at:at+n*type_.Size()])
		if up {
			tensor.Convert(card, host.At(hostAt, card.Shape))
		} else {
			tensor.Convert(host.At(hostAt, card.Shape), card)
		}
	}
	if c.Slots > 0 && !p.isFull {
		copyPart(s.SlotKeys, 0, p.slotKeys, s.SlotKeys.Len(), tensor.F32)
		copyPart(s.SlotValues, 0, p.slotValues, s.SlotValues.Len(), tensor.F32)
	}
	if s.Count == 0 {
		return
	}
	keys, values, gates, rows := d.ring(layer, room)
	stretches(s.Position-s.Count, s.Count, s.Start, s.Capacity(), rows, func(host, card, n int) {
		for h := range c.KVHeads {
			from, to := h*s.Capacity()+host, h*rows+card
			copyPart(s.Keys, from*c.KeyDim, keys+2*to*c.KeyDim, n*c.KeyDim, tensor.BF16)
			copyPart(s.Values, from*c.ValueDim, values+2*to*c.ValueDim, n*c.ValueDim, tensor.BF16)
			if c.Slots > 0 {
				copyPart(s.LogGates, from*c.Slots, gates+4*to*c.Slots, n*c.Slots, tensor.F32)
			}
		}
	})
}

// bytes is host memory for a block, kept for the next.
func (d *decoder) bytes(n int) []byte {
	if len(d.scratch) < n {
		d.scratch = make([]byte, n)
	}
	return d.scratch[:n]
}

// up writes bytes to the card.
func (d *decoder) up(to uintptr, data []byte) {
	shape := tensor.Of(len(data))
	d.b.d.write(tensor.OnDevice(tensor.U8, shape, to), tensor.FromBytes(tensor.U8, shape, data))
}

func roomFor(tokens int) int {
	room := firstRoom
	for room < tokens {
		room *= 2
	}
	return room
}

// Join brings a sequence to the card.
func (d *decoder) Join(layers []*attention.State, seen []uint64, next int32, draw backend.Draw) int {
	d.b.op("decode: a sequence comes")
	position := layers[0].Position
	s := &seat{position: position, room: roomFor(position + 1)}
	block := d.bytes(d.blockBytes(s.room))
	clear(block)
	for i, l := range layers {
		d.move(i, s.room, l, block, true)
	}
	s.block = d.b.d.alloc(max(len(block), 1), forTensors)
	s.record = d.b.d.alloc(seatAligned+d.seen, forTensors)
	d.up(s.block, block)
	record := make([]byte, seatAligned+d.seen)
	le := binary.LittleEndian
	le.PutUint64(record[0:], uint64(s.block))
	le.PutUint64(record[8:], uint64(s.record)+seatAligned)
	le.PutUint64(record[16:], uint64(position))
	le.PutUint64(record[24:], uint64(s.room))
	le.PutUint32(record[32:], uint32(next))
	le.PutUint32(record[36:], uint32(draw.TopK))
	le.PutUint64(record[40:], draw.Seed)
	le.PutUint64(record[48:], uint64(draw.Sample))
	for i, x := range []float64{draw.Temperature, draw.TopP, draw.MinP, draw.RepetitionPenalty} {
		le.PutUint32(record[56+4*i:], math.Float32bits(float32(x)))
	}
	for i, word := range seen {
		if at := seatAligned + 8*i; at+8 <= len(record) {
			le.PutUint64(record[at:], word)
		} else if at+4 <= len(record) {
			le.PutUint32(record[at:], uint32(word))
		}
	}
	d.up(s.record, record)
	if n := len(d.vacant); n > 0 {
		i := d.vacant[n-1]
		d.vacant, d.seats[i] = d.vacant[:n-1], s
		return i
	}
	d.seats = append(d.seats, s)
	return len(d.seats) - 1
}

// makeRoom doubles a seat's rings of full windows until they hold n tokens.
func (d *decoder) makeRoom(s *seat, n int) {
	if n <= s.room || d.perToken == 0 {
		return
	}
	dev, room := d.b.d, roomFor(n)
	block := dev.alloc(d.blockBytes(room), forTensors)
	dev.copyOnDevice(block, s.block, d.fixed)
	for i := range d.places {
		if !d.places[i].isFull {
			continue
		}
		c := d.m.Blocks[i].Attention
		oldKeys, oldValues, oldGates, _ := d.ring(i, s.room)
		keys, values, gates, _ := d.ring(i, room)
		for h := range c.KVHeads {
			for _, part := range [][3]int{{keys, oldKeys, 2 * c.KeyDim}, {values, oldValues, 2 * c.ValueDim}, {gates, oldGates, 4 * c.Slots}} {
				dev.copyOnDevice(block+uintptr(part[0]+h*room*part[2]), s.block+uintptr(part[1]+h*s.room*part[2]), s.position*part[2])
			}
		}
	}
	dev.release(s.block)
	s.block, s.room = block, room
	var word [8]byte
	binary.LittleEndian.PutUint64(word[:], uint64(block))
	d.up(s.record, word[:])
	binary.LittleEndian.PutUint64(word[:], uint64(room))
	d.up(s.record+24, word[:])
}

// makeRope has tables for so many positions. Recorded steps hold the tables' addresses, so they are forgotten where those change.
func (d *decoder) makeRope(positions int) {
	rope := d.m.Blocks[0].Attention.Rope
	if rope == nil {
		return
	}
	rows := 64
	for i := range d.m.Blocks {
		if w := d.m.Blocks[i].Attention.Window; w == attention.Full {
			rows = max(rows, positions)
		} else {
			rows = max(rows, w)
		}
	}
	if rows <= d.ropeRows {
		return
	}
	if d.perToken > 0 {
		rows = max(4096, 2*rows)
	}
	d.forget()
	if d.ropeRows > 0 {
		d.b.d.release(uintptr(d.cos))
		d.b.d.release(uintptr(d.sin))
	}
	half := rope.Dim() / 2
	cos, sin := rope.Table(rows)
	place := func(x []float32) arg {
		p := d.b.d.alloc(4*rows*half, forScratch)
		d.b.d.write(tensor.OnDevice(tensor.F32, tensor.Of(rows*half), p), tensor.FromF32(x[:rows*half], rows*half))
		return arg(p)
	}
	d.cos, d.sin, d.ropeRows = place(cos), place(sin), rows
}

// program is the recorded step for at least n rows.
func (d *decoder) program(n int) *program {
	rows := maxRows
	for _, r := range decodeRows {
		if r >= n {
			rows = r
			break
		}
	}
	if s, ok := d.programs[rows]; ok {
		return s
	}
	s := &program{rows: rows}
	p := &plan{d: d, rows: rows, sms: d.b.d.sms, alloc: func(bytes int) arg {
		to := d.b.d.alloc(max(bytes, 1), forScratch)
		d.b.d.fill(to, 0, bytes)
		s.buffers = append(s.buffers, to)
		return arg(to)
	}}
	s.logits, s.results = p.build()
	nodes, err := p.compile()
	if err != nil {
		panic(err)
	}
	s.exec = d.recorder.record(nodes)
	d.programs[rows] = s
	return s
}

// forget frees the recorded steps.
func (d *decoder) forget() {
	for rows, s := range d.programs {
		d.recorder.forget(s.exec)
		for _, p := range s.buffers {
			d.b.d.release(p)
		}
		delete(d.programs, rows)
	}
	d.last = nil
}

// Step queues a step of these seats.
func (d *decoder) Step(seats []int) {
	d.b.op("decode step")
	if len(seats) == 0 || len(seats) > maxRows || d.queued-d.taken == inFlight {
		panic(fmt.Sprintf("cuda: a step of %d rows, %d steps waiting", len(seats), d.queued-d.taken))
	}
	longest := 0
	for _, i := range seats {
		s := d.seats[i]
		d.makeRoom(s, s.position+1)
		longest = max(longest, s.position+1)
	}
	d.makeRope(longest)
	program := d.program(len(seats))
	changed := false
	for r := range program.rows {
		address := uint64(0)
		if r < len(seats) {
			address = uint64(d.seats[seats[r]].record)
		}
		changed = changed || d.ordered[r] != address
		d.ordered[r] = address
	}
	if changed {
		d.up(uintptr(d.order), unsafe.Slice((*byte)(unsafe.Pointer(unsafe.SliceData(d.ordered))), 8*program.rows))
	}
	for _, i := range seats {
		d.seats[i].position++
	}
	turn := d.queued % inFlight
	d.counts[turn], d.last = len(seats), program
	d.queued++
	c := d.b.d.take(runStep)
	c.args[0], c.args[1], c.args[2], c.args[3], c.args[4] = uint64(program.exec), uint64(d.host)+uint64(turn*maxRows*8), uint64(program.results), uint64(8*len(seats)), uint64(d.events[turn])
	c.args[5] = uint64(d.recorder.f[cuGraphLaunch])
	d.b.d.queue <- c
}

func runStep(d *device, c *command) error {
	if code := d.invoke(uintptr(c.args[5]), uintptr(c.args[0]), d.stream); code != 0 {
		return d.driver.failure("cuGraphLaunch", code)
	}
	if err := d.issue(cuMemcpyDtoHAsync, uintptr(c.args[1]), uintptr(c.args[2]), uintptr(c.args[3]), d.stream); err != nil {
		return err
	}
	return d.issue(cuEventRecord, uintptr(c.args[4]), d.stream)
}

// Drawn waits for the oldest step whose tokens were not asked for.
func (d *decoder) Drawn(dst []backend.Drawn) []backend.Drawn {
	turn := d.taken % inFlight
	d.taken++
	c := d.b.d.take(func(d *device, c *command) error { return d.issue(cuEventSynchronize, uintptr(c.args[0])) })
	c.args[0] = uint64(d.events[turn])
	err := d.b.d.finish(c)
	d.b.d.check()
	if err != nil {
		panic(err)
	}
	address := d.host + uintptr(turn*maxRows*8)
	results := unsafe.Slice((*int32)(*(*unsafe.Pointer)(unsafe.Pointer(&address))), 2*d.counts[turn])
	dst = dst[:0]
	for i := range d.counts[turn] {
		dst = append(dst, backend.Drawn{Token: results[2*i], LogProb: math.Float32frombits(uint32(results[2*i+1]))})
	}
	return dst
}

// Leave brings a sequence back.
func (d *decoder) Leave(i, row int, layers []*attention.State, logits tensor.Tensor) {
	d.b.op("decode: a sequence leaves")
	s := d.seats[i]
	block := d.bytes(d.blockBytes(s.room))
	shape := tensor.Of(len(block))
	d.b.d.read(tensor.FromBytes(tensor.U8, shape, block), tensor.OnDevice(tensor.U8, shape, s.block))
	for n, l := range layers {
		c := d.m.Blocks[n].Attention
		l.Count = 0
		l.Reserve(c, s.position)
		l.Position, l.Start, l.Count = s.position, 0, min(c.Window, s.position)
		d.move(n, s.room, l, block, false)
	}
	if logits.Present() {
		n := logits.Len()
		d.b.d.read(logits, tensor.OnDevice(tensor.F32, logits.Shape, uintptr(d.last.logits)+uintptr(4*row*n)))
	}
	d.Drop(i)
}

// Drop frees a seat.
func (d *decoder) Drop(i int) {
	s := d.seats[i]
	for r := range d.ordered { // memory that is given out again is no seat
		if d.ordered[r] == uint64(s.record) {
			d.ordered[r] = ^uint64(0)
		}
	}
	d.b.d.release(s.block)
	d.b.d.release(s.record)
	d.seats[i] = nil
	d.vacant = append(d.vacant, i)
}

// Close frees all that the decoder holds on the card.
func (d *decoder) Close() {
	d.forget()
	for i, s := range d.seats {
		if s != nil {
			d.Drop(i)
		}
	}
	if d.ropeRows > 0 {
		d.b.d.release(uintptr(d.cos))
		d.b.d.release(uintptr(d.sin))
	}
	d.b.d.release(uintptr(d.order))
	d.b.d.must(func() error {
		for _, e := range d.events {
			_ = d.b.d.driver.do(cuEventDestroy, e)
		}
		return d.b.d.driver.do(cuMemFreeHost, d.host)
	})
}
