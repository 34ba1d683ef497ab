local bough = require "bough"
local scratch = require "spec.support.scratch"

describe("the embedded engine:", function()
  require "spec.engine.conformance"(function() return bough.open(scratch.store()) end, _ENV)
end)
