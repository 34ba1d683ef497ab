-- What examples/epoll_host.c runs. `finished` tells the host when to stop.

local bough = require "bough"

-- luacheck: globals finished
finished = false

bough.spawn(function()
  local box <close> = bough.open()
  local base = box.images:use "busybox"
  local image = base:run { shell = "sleep 0.1; echo from a sandbox" }
  io.write(image.stdout)
  finished = true
end)

return bough
