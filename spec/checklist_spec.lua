--- Each line of the two checklists for clients and servers of the ConTree API has a test that names it.

local lfs = require "lfs"

-- Which lines the titles of tests name, in the spec files whose names begin so.
local function named(letter, prefix)
  local found = {}
  for name in lfs.dir "spec" do
    if name:sub(1, #prefix) == prefix and name:find "_spec%.lua$" then
      local file <close> = assert(io.open("spec/" .. name))
      for line in file:lines() do
        local title = line:match '^%s*[%w_]+%("([^"]*)"' or ""
        for number in title:gmatch("%f[%a]" .. letter .. "(%d+)%f[%D]") do found[tonumber(number)] = true end
      end
    end
  end
  return found
end

local function missing(letter, count, prefix)
  local found, lost = named(letter, prefix), {}
  for i = 1, count do
    if not found[i] then lost[#lost + 1] = letter .. i end
  end
  return lost
end

describe("the checklists:", function()
  it("each line for servers has a test", function() assert.same({}, missing("S", 59, "serve")) end)

  it("each line for clients has a test", function() assert.same({}, missing("C", 30, "contree")) end)
end)
