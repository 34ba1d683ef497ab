-- Tasks of ours inside a luv program: its loop watches our descriptor and our next deadline.

local uv = require "luv"
local bough = require "bough"

local poll = uv.new_poll(bough.fd())
local timer = uv.new_timer()

local function turn()
  if not bough.step(0) then -- nothing of ours is left
    poll:stop()
    poll:close()
    timer:stop()
    timer:close()
    return
  end
  local seconds = bough.timeout()
  timer:stop()
  if seconds then
    timer:start(math.ceil(seconds * 1000), 0, turn)
  end
end

bough.spawn(function()
  local box <close> = bough.open()
  local image = box.images:use("busybox"):run { shell = "sleep 0.1; echo from a sandbox" }
  io.write(image.stdout)
end)

poll:start("r", turn)
turn()
local ticks = 0
local heartbeat = uv.new_timer()
heartbeat:start(0, 10, function()
  ticks = ticks + 1
  if poll:is_closing() then
    heartbeat:close()
  end
end)
uv.run()
print(("luv's own timer went on: %s"):format(ticks > 2))
