--- The same sessions on ConTree: `lua5.4 examples/contree.lua [URL]`.
--
-- A URL is "contree://" for the service, with the credentials of the environment or of a profile, or that of any server
-- of its API. Without one, this program serves the embedded engine to itself.

local bough = require "bough"

local url, token, server = arg[1], nil, nil
if not url then
  server = bough.serve { port = 0, images = { "busybox" }, log = false }
  url, token = server.url, server.token
end

local box <close> = bough.open(url, { token = token })
local base = box.images:use(server and "busybox" or "docker.io/library/busybox:latest")
print(box)

-- tries from one point, at the same time
local ready = base:run { "sh", "-c", "cat >/notes", stdin = "three\none\ntwo\n" }
local tries = bough.all {
  function() return ready:run "sort /notes >/sorted" end,
  function() return ready:run "sort -r /notes >/sorted" end,
}
for i, image in ipairs(tries) do print(i, (image:read "/sorted":gsub("\n", " "))) end

-- a session with a live process; its output comes as it is written
local session <close> = tries[1]:session()
local process <close> = session:popen { "sh", "-c", "while read -r word; do echo got $word; done", stdin = bough.PIPE }
for _, word in ipairs { "four", "five" } do
  process.stdin:write(word, "\n")
  print(process.stdout:read())
end
process.stdin:close()
print("exit", process:wait(), #session:history())

if server then server:stop(0) end
