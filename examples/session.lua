-- A session moves along the images that its runs leave, and back.

local bough = require "bough"

local box <close> = bough.open()
local base = box.images:use "busybox"

local s <close> = base:session { env = { WHO = "session" } }
s:run { shell = "echo one > /log" }
s:run { shell = "echo $WHO >> /log" }
io.write(s:read "/log")

s:run { shell = "rm -rf /log /bin" } -- oops
s:rollback() -- as if that run had not been
io.write(s:read "/log")

-- A second session from the same point; neither sees what the other does.
local twin <close> = s:branch()
twin:run { shell = "echo twin >> /log" }
s:run { shell = "echo original >> /log" }
print "--"
io.write(twin:read "/log")
print "--"
io.write(s:read "/log")

-- With `check` a failing command is an error, and the session stays where it was.
local ok, err = pcall(s.run, s, { shell = "rm /log; exit 3", check = true })
print("--", ok, err.kind, err.result.exit_code)
io.write(s:read "/log")
