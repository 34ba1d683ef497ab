-- Pipelines: commands joined by |, in sandboxes, on this machine, and Lua functions between them.

local bough = require "bough"

local box <close> = bough.open()
local s <close> = box.images:use("busybox"):session()

-- Nothing runs until something is wanted of it. Here: a number, as file:read "n" gives it.
local lines = s:cmd "seq 1 100" | s:cmd { "grep", "-c", "7" }
print(lines, "", lines:read "n")

-- Data, files, iterators and readers go in front; a function among the stages gets two streams.
local words = "the quick the lazy the dog\n" | s:cmd "tr ' ' '\\n'" | function(input, output)
  local count = {}
  for word in input:lines() do count[word] = (count[word] or 0) + 1 end
  for word, times in pairs(count) do output:write(times, " ", word, "\n") end
end | bough.host { "sort", "-k1,1nr", "-k2", env = { LC_ALL = "C" } }
for line in words:lines() do
  print(line)
  if line:find "dog" then break end -- what runs is killed, and waited for
end

-- What passes can be copied on its way, and every stage tells how it ended.
local seen = 0
local result = (s:cmd "echo one; echo two; exit 3"
  | bough.tee(function() seen = seen + 1 end, { text = "lines" })
  | s:cmd "tail -n 1"):wait()
print("last line:", result.stdout:match "%S+", "lines:", seen)
print("status:", result.exit_code, "stages:", result.stages[1].exit_code, result.stages[3].exit_code)

-- With pipefail the first command's failure counts, and with check it is raised.
local strict = (s:cmd "echo broken >&2; exit 3" | s:cmd "cat"):with { pipefail = true, check = true }
print(select(2, pcall(strict.wait, strict)))

-- A conversation: started, written to, read from.
local run <close> = (s:cmd { "cat", stdin = bough.PIPE } | s:cmd 'while read -r x; do echo "> $x"; done'):start()
for _, line in ipairs { "hello", "world" } do
  run.stdin:write(line, "\n")
  print(run:read "l")
end
run.stdin:close()
print(run:wait().ok)
