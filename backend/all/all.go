// Package all registers every backend of this build. The cuda backend's way to NVIDIA's libraries makes the binary ask for a
// dynamic loader on Linux; built with -tags nocuda it is left out and the binary is static.
package all

import (
	_ "nha/backend/cpu"
	_ "nha/backend/ref"
)
