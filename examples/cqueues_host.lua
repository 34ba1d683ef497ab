-- Tasks of ours inside a cqueues program, which polls anything that answers pollfd, events and timeout.

local cqueues = require "cqueues"
local bough = require "bough"

local loop = cqueues.new()

loop:wrap(function()
  local ours = {
    pollfd = bough.fd(),
    events = "r",
    timeout = function() return bough.timeout() end,
  }
  while bough.step(0) do
    cqueues.poll(ours)
  end
end)

local ticks = 0
local finished = false
loop:wrap(function()
  while not finished do
    ticks = ticks + 1
    cqueues.sleep(0.01)
  end
end)

bough.spawn(function()
  local box <close> = bough.open()
  local image = box.images:use("busybox"):run { shell = "sleep 0.1; echo from a sandbox" }
  io.write(image.stdout)
  finished = true
end)

assert(loop:loop())
print(("cqueues' own coroutine went on: %s"):format(ticks > 2))
