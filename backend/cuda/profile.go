package cuda

import (
	"cmp"
	"slices"
	"unsafe"

	"nha/backend"
)

// profile is the card's time by op: an event before and one after every command. Commands then no longer follow each other
// without a gap, so the sum is a little more than the time of the whole.
type profile struct {
	spans []span
}

type span struct {
	name       string
	begin, end uintptr
}

// Profile measures what f queues, the longest first.
func (b *Backend) Profile(f func()) []backend.OpTime {
	d := b.d
	p := &profile{}
	d.must(func() error { d.profile = p; return nil })
	f()
	sums := map[string]*backend.OpTime{}
	d.must(func() error {
		d.profile = nil
		if err := d.driver.do(cuStreamSynchronize, d.stream); err != nil {
			return err
		}
		for _, s := range p.spans {
			var ms float32
			if err := d.driver.do(cuEventElapsedTime, uintptr(unsafe.Pointer(&ms)), s.begin, s.end); err != nil {
				return err
			}
			t := sums[s.name]
			if t == nil {
				t = &backend.OpTime{Name: s.name}
				sums[s.name] = t
			}
			t.Calls++
			t.MS += float64(ms)
			for _, e := range []uintptr{s.begin, s.end} {
				if err := d.driver.do(cuEventDestroy, e); err != nil {
					return err
				}
			}
		}
		return nil
	})
	var list []backend.OpTime
	for _, t := range sums {
		list = append(list, *t)
	}
	slices.SortFunc(list, func(a, b backend.OpTime) int { return cmp.Or(cmp.Compare(b.MS, a.MS), cmp.Compare(a.Name, b.Name)) })
	return list
}

// run runs a command between two events; on the device's thread.
func (p *profile) run(d *device, c *command) error {
	s := span{name: c.where.op}
	switch {
	case c.kernel != nil:
		s.name += ": " + c.kernel.entry
	case c.plan != nil:
		s.name += " " + c.where.shapes[0].String() + " of " + c.where.shapes[1].String()
	}
	for _, e := range []*uintptr{&s.begin, &s.end} {
		if err := d.driver.do(cuEventCreate, uintptr(unsafe.Pointer(e)), 0); err != nil {
			return err
		}
	}
	if err := d.driver.do(cuEventRecord, s.begin, d.stream); err != nil {
		return err
	}
	if err := c.run(d, c); err != nil {
		return err
	}
	p.spans = append(p.spans, s)
	return d.driver.do(cuEventRecord, s.end, d.stream)
}
