-- Every run leaves an image; the one it started from stays as it was.

local bough = require "bough"

local box <close> = bough.open()
local base = box.images:use "busybox"

local built = base:run { shell = "echo hello from $(hostname) > /greeting" }
io.write(built:read "/greeting")
print("exit code", built.exit_code)

-- `base` has no greeting: the command fails, which is a result and not an error.
local missing = base:run { "cat", "/greeting" }
print("exit code", missing.exit_code)
io.write(missing.stderr)
