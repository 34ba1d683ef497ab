--- The specification of engines, against ConTree over `bough serve`.

local conformance = require "spec.engine.conformance"
local serve_process = require "spec.support.serve_process"

describe("ConTree over bough serve:", function()
  local asked = 0

  local function log(_, message)
    if message:find "^%u+ /" then asked = asked + 1 end
  end

  teardown(serve_process.stop_all)

  conformance(function() return serve_process.start():open { log = log } end, _ENV, {
    terminals = true, snapshots = true, removal = true, imports = true, unbounded = true, remains = true,
    flushes = true, trees = true, bytes = true, solitude = true, network = true, limits = true, cache = true,
    exports = true, links = true, asked = function() return asked end,
  })
end)
