-- Tasks: the calls that block elsewhere let other tasks run here.

local bough = require "bough"

local box <close> = bough.open()
local base = box.images:use "busybox"

-- All of them; the results in the order of the functions.
local images = bough.all {
  function() return base:run { shell = "sleep 0.2; echo one" } end,
  function() return base:run { shell = "sleep 0.1; echo two" } end,
  function() return base:run { shell = "echo three" } end,
}
for i, image in ipairs(images) do
  io.write(i, " ", image.stdout)
end

-- The first to finish; the others are cancelled and their sandboxes gone.
local first = bough.race {
  function() return base:run { shell = "sleep 30; echo slow" } end,
  function() return base:run { shell = "echo quick" } end,
}
io.write("first: ", first.stdout)

-- A deadline over any number of calls.
local ok, err = pcall(bough.deadline, 0.3, function()
  base:run { "sleep", "30" }
end)
print("deadline:", ok, err.kind)
