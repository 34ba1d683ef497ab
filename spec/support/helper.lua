--- Loaded by busted before the specs: every file is checked against the leak ledger.
--
-- BOUGH_LEDGER=test checks after each test as well, which tells the one that leaks.

local busted = require "busted"

-- Loaded here, so that busted's isolation of files does not load them anew for each:
-- the loop lives as long as the Lua state, and its descriptors belong to no test.
local core = require "bough.core"
require "bough"
core.host_exec({ argv = { "true" } }):wait() -- bough-spawn too lives as long as the Lua state
local ledger = require "spec.support.ledger"
local scratch = require "spec.support.scratch"

local at_file, at_test -- snapshots
local file_scope, test_scope

busted.subscribe({ "file", "start" }, function()
  at_file = ledger.snapshot()
  file_scope = scratch.enter()
  return nil, true
end)

busted.subscribe({ "file", "end" }, function(file)
  scratch.leave(file_scope)
  local lines = ledger.leaks(at_file)
  if #lines > 0 then
    error(("%s leaks:\n  %s\n(BOUGH_LEDGER=test tells which test)")
      :format(file.name, table.concat(lines, "\n  ")), 0)
  end
  return nil, true
end)

busted.subscribe({ "test", "start" }, function()
  if os.getenv "BOUGH_LEDGER" == "test" then
    at_test = ledger.snapshot()
  end
  test_scope = scratch.enter()
  return nil, true
end)

busted.subscribe({ "test", "end" }, function(element)
  scratch.leave(test_scope)
  if at_test then
    for _, line in ipairs(ledger.leaks(at_test)) do
      io.write("# after \"", element.name, "\": ", line, "\n")
    end
    at_test = nil
  end
  return nil, true
end)
