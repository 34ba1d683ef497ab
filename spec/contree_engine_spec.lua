--- The specification of engines, against ConTree over `bough serve`. Every request is held against the API as well.

local checked_http = require "spec.support.checked_http"
local conformance = require "spec.engine.conformance"
local serve_process = require "spec.support.serve_process"

describe("ConTree over bough serve:", function()
  local asked = 0
  local restore

  local function log(_, message)
    if message:find "^%u+ /" then asked = asked + 1 end
  end

  setup(function() restore = checked_http.install() end)

  teardown(function()
    restore()
    serve_process.stop_all()
  end)

  conformance(function() return serve_process.start():open { log = log } end, _ENV, {
    terminals = true, snapshots = true, removal = true, imports = true, unbounded = true, remains = true,
    flushes = true, trees = true, bytes = true, solitude = true, network = true, limits = true, cache = true,
    exports = true, links = true, asked = function() return asked end,
  })

  it("asks for nothing that the API does not have", function()
    assert.same({}, checked_http.complaints)
    assert.is_true(checked_http.count > 1000, checked_http.count .. " requests")
    local operations = 0
    for _ in pairs(checked_http.seen) do operations = operations + 1 end
    assert.is_true(operations >= 15, operations .. " operations")
  end)
end)
