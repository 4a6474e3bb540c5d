// Package all registers every backend of this build.
package all

import (
	_ "nha/backend/cpu"
	_ "nha/backend/cuda"
	_ "nha/backend/ref"
)
