-- A shell in a sandbox, in this terminal. What it leaves is an image like any other.

local bough = require "bough"

local box <close> = bough.open()
local base = box.images:use "busybox"
local s <close> = base:session()

print "You are root in there. `exit` comes back."
local shell <close> = s:popen { "sh", pty = { term = os.getenv "TERM" } }

-- Without a terminal of ours, standard input is typed into the shell's.
local code = shell:attach()

print(("the shell ended with %d"):format(code))
for _, change in ipairs(s:image():diff(base)) do
  print(change.op, change.path)
end
