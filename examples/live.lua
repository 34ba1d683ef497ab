-- Live processes: one to talk to, several in one running sandbox, and a pipeline.

local bough = require "bough"

local box <close> = bough.open()
local base = box.images:use "busybox"

-- A command that answers. What it changes becomes an image when it has ended.
local sums <close> = base:popen {
  "awk", '{ print $1 + $2; print $0 >> "/asked"; fflush() }', stdin = bough.PIPE,
}
for _, question in ipairs { "1 2", "20 22" } do
  sums.stdin:write(question, "\n")
  print(question, "->", sums.stdout:read "n")
end
sums.stdin:close()
print("exit code", sums:wait())
io.write("asked: ", sums.image:read "/asked":gsub("\n", "; "), "\n")

-- A sandbox that stays: a daemon, and commands beside it. An image of it while it runs.
do
  local server <close> = base:boot { hostname = "server" }
  local daemon = server:exec "echo up; n=0; while sleep 0.01; do n=$((n + 1)); echo $n >> /count; done"
  print("daemon:", daemon.stdout:read "l")
  server:exec("until test -s /count; do sleep 0.01; done"):wait()
  local first = server:commit { tag = "running" }
  print("counted so far:", first:read("/count"):match "^1\n" ~= nil, "still running:", daemon.returncode == nil)

  daemon:terminate()
  print("ended with", daemon:wait(), "signal", daemon.signal)
  print("in the same sandbox:", server:exec({ "hostname" }).stdout:read "l")
end

-- Pipelines go from sandbox to sandbox, to this machine's own commands, and through functions.
local function shout(input, output)
  for line in input:lines() do output:write(line:upper(), "\n") end
end
local session <close> = base:session()
local loud = session:cmd { "printf", "pear\napple\nfig\n" } | base:cmd "sort" | shout | bough.host { "head", "-n", "2" }
for line in loud:lines() do print(line) end
