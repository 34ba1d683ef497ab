--- What fuzz/manifest.c calls with a number and a text: one of the readers of strangers' documents.

local core = require "bough.core"
local manifest = require "bough.manifest"
local reference = require "bough.reference"

local function at() return manifest.place("fuzz", "here") end

local readers = {
  function(text)
    local kind, value = manifest.read(text, at())
    if kind == "index" then
      manifest.entries(value, at())
    else
      local _, layers = manifest.parts(value, at())
      for _, layer in ipairs(layers) do manifest.check_layer(layer, at()) end
    end
  end,
  function(text)
    local config = manifest.config(text, at(), 1)
    manifest.check_platform(config, { os = "linux", architecture = "amd64" }, at())
  end,
  function(text) reference.parse(text, "fuzz") end,
  function(text) reference.looks_like(text) end,
}

return function(which, text)
  local good, problem = pcall(readers[which % #readers + 1], text)
  if good then return end
  assert(core.is_error(problem), problem)
  local line = tostring(problem)
  assert(not line:find "[\n\r]", "more than one line: " .. line)
  assert(#line < 2000, "a line that long helps nobody")
end
