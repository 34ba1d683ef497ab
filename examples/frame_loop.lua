-- A host with a frame loop of its own: bough.step(0) does what is ready and never
-- waits, so a sandbox never costs a frame.

local bough = require "bough"

local box <close> = bough.open()
local base = box.images:use "busybox"

local done
local task = bough.spawn(function()
  local image = base:run { shell = "sleep 0.1; echo compiled" }
  done = image.stdout
end)

local frames, longest = 0, 0
while not done do
  local started = os.clock()
  bough.step(0)
  longest = math.max(longest, os.clock() - started)
  if task.status == "failed" then
    task:wait() -- raises what went wrong
  end

  frames = frames + 1 -- update and draw would be here
  os.execute "sleep 0.016"
end

io.write("result: ", done)
print(("took more than one frame: %s"):format(frames > 1))
print(("a step took less than 5 ms: %s"):format(longest < 0.005))
