// Package all registers every backend of this build.
package all

import _ "nha/backend/ref"
