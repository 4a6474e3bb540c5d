//go:build !nocuda

package all

import _ "nha/backend/cuda"
