--- The ways out of a sandbox that isolation_spec.lua tries, once more from a process that was started in a sandbox
-- which is running already: not its first one, whose preparation is that of a run.

local bough = require "bough"
local arena = require "spec.support.arena"
local image = require "bough.image"
local scratch = require "spec.support.scratch"
local options = require "bough.options"

local of_sandbox = { files = true, limits = true, network = true, hostname = true, disposable = true }

-- image:run by way of boot and exec: what comes back has the fields and methods of the image, and the result.
local function run_by_exec(self, command, opts)
  local first, given = {}, { stdout = true, stderr = true }
  for name, value in pairs(options.fold(command, opts, "run")) do
    if of_sandbox[name] then first[name] = value else given[name] = value end
  end
  local instance <close> = self:boot(first)
  assert(instance:exec({ "/bin/true" }):wait() == 0)
  local process <close> = instance:exec(given)
  process:wait()
  local result = process.result
  instance:stop(0)
  local left = not first.disposable and instance:commit() or nil
  return setmetatable({ result = result }, {
    __index = function(_, name)
      if result[name] ~= nil then return result[name] end
      local value = left and left[name]
      if type(value) == "function" then return function(_, ...) return value(left, ...) end end
      return value
    end,
  })
end

describe("a process in a running sandbox:", function()
  local run

  setup(function() run = image.replace("run", run_by_exec) end)
  teardown(function() image.replace("run", run) end)

  assert(loadfile("spec/isolation_spec.lua", "t", _ENV))()
end)

describe("what starts processes in a running sandbox", function()
  local box, base

  setup(function()
    box = bough.open(scratch.store())
    base = box.images:import(arena.tree((arena.compile())))
  end)
  teardown(function() box:close() end)

  -- The processes of pid 1's program: itself, and the one that waits to make others.
  local OTHERS = [[cd /proc; for p in [0-9]*; do
    if [ $p != 1 ] && [ "$(cat $p/comm)" = bough-init ]; then echo $p; fi; done]]

  it("cannot be traced nor read, and no other process of ours is in sight", function()
    local instance <close> = base:boot()
    assert.equal(0, instance:exec { "/bin/true" }:wait())
    local found = instance:exec(OTHERS):communicate()
    local pid = found:match "^(%d+)\n$"
    assert.is_truthy(pid, found)
    local tried = arena.outcomes((instance:exec { "/attack", "pry", pid }:communicate()))
    arena.refused(tried, "EPERM EACCES ESRCH", 14)
  end)

  for _, signal in ipairs { "KILL", "STOP", "USR1" } do
    it("can be hit with SIG" .. signal .. " by others in the sandbox, and goes on starting", function()
      local instance <close> = base:boot()
      assert.equal(0, instance:exec { "/bin/true" }:wait())
      local hitter = instance:exec(("while :; do for p in $(%s); do kill -%s $p; done; done 2>/dev/null")
        :format(OTHERS, signal))
      local unhurt = 0
      for i = 1, 20 do
        local process = instance:exec("exit " .. i)
        -- it can be hit before it has become the command, by its name then
        if process:wait() == i then unhurt = unhurt + 1 else assert.is_truthy(process.signal) end
      end
      assert.is_true(unhurt > 0)
      hitter:kill()
      hitter:wait()
      instance:stop(0)
    end)
  end
end)
