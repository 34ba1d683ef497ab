--- Platforms as OCI names them: `linux/amd64`, `linux/arm64/v8`.

local core = require "bough.core"
local errors = require "bough.error"

local M = {}

---@class bough.platform
---@field os string
---@field architecture string
---@field variant string?

-- The kernel's names, and what people write, in Go's words.
local machines = {
  x86_64 = { "amd64" }, ["x86-64"] = { "amd64" },
  i386 = { "386" }, i486 = { "386" }, i586 = { "386" }, i686 = { "386" },
  aarch64 = { "arm64" },
  armv5l = { "arm", "v5" }, armv6l = { "arm", "v6" }, armv7l = { "arm", "v7" }, armv8l = { "arm", "v7" },
  armhf = { "arm", "v7" }, armel = { "arm", "v6" },
  loongarch64 = { "loong64" },
}

-- What needs no telling: arm64 is v8, plain amd64 is v1, 32-bit arm is v7 nowadays.
local implied = { arm64 = "v8", amd64 = "v1", arm = "v7" }

local function normal(os, architecture, variant)
  local known = machines[architecture]
  if known then architecture, variant = known[1], variant or known[2] end
  if variant == "" or variant == implied[architecture] then variant = nil end
  return { os = os, architecture = architecture, variant = variant }
end

--- This machine.
---@return bough.platform
function M.here() return normal("linux", core.machine()) end

--- Reads "linux/arm64", "linux/arm/v7" or just "arm64". Raises `invalid`.
---@param text string
---@param op string
---@return bough.platform
function M.parse(text, op)
  local parts = {}
  if type(text) == "string" then
    for part in text:gmatch("[^/]+") do parts[#parts + 1] = part:lower() end
    if #parts == 1 then table.insert(parts, 1, "linux") end
  end
  if #parts < 2 or #parts > 3 or ("/" .. text .. "/"):find("/[^%w]") or text:find("[^%w._/-]") then
    errors.raise("invalid", op, 'platform must be such as "linux/arm64", got %s', errors.quote(text))
  end
  if parts[1] ~= "linux" then
    errors.raise("unsupported", op, "platform %s: only images of Linux can be used", errors.quote(text))
  end
  return normal(parts[1], parts[2], parts[3])
end

--- A platform that a document states, or nil where it states none or nonsense.
---@param value any
---@return bough.platform?
function M.read(value)
  if type(value) ~= "table" then return nil end
  local os, architecture, variant = value.os, value.architecture, value.variant
  if type(os) ~= "string" or type(architecture) ~= "string" then return nil end
  if (os .. architecture):find("[^%w._-]") or #os + #architecture > 64 then return nil end
  if type(variant) ~= "string" or variant:find("[^%w._-]") or #variant > 32 then variant = nil end
  return normal(os, architecture, variant)
end

---@param platform bough.platform
---@return string
function M.text(platform)
  local text = platform.os .. "/" .. platform.architecture
  return platform.variant and text .. "/" .. platform.variant or text
end

-- How well `offered` serves `wanted`, nil for not at all. A 32-bit arm runs what was made for older ones.
local function fit(wanted, offered)
  if offered.os ~= wanted.os or offered.architecture ~= wanted.architecture then return nil end
  if offered.variant == wanted.variant then return 100 end
  if wanted.architecture ~= "arm" then return nil end
  local most = tonumber((wanted.variant or implied.arm):match("^v(%d+)$"))
  local level = tonumber((offered.variant or implied.arm):match("^v(%d+)$"))
  return most and level and level <= most and level or nil
end

--- Whether what was made for `offered` runs where `wanted` does.
---@param wanted bough.platform
---@param offered bough.platform
---@return boolean
function M.fits(wanted, offered) return fit(wanted, offered) ~= nil end

--- The item that fits best, by `item.platform` as the document has it; of equals the first.
---@param wanted bough.platform
---@param items table[]
---@return table?
function M.pick(wanted, items)
  local best, best_fit
  for _, item in ipairs(items) do
    local offered = M.read(item.platform)
    local fits = offered and fit(wanted, offered)
    if fits and (not best_fit or fits > best_fit) then best, best_fit = item, fits end
  end
  return best
end

--- The platforms of some items, for a message.
---@param items table[]
---@return string
function M.list(items)
  local names, seen = {}, {}
  for _, item in ipairs(items) do
    local offered = M.read(item.platform)
    local name = offered and offered.os ~= "unknown" and M.text(offered)
    if name and not seen[name] then
      seen[name] = true
      names[#names + 1] = name
    end
  end
  table.sort(names)
  if #names > 8 then names = { table.concat(names, ", ", 1, 8), ("%d more"):format(#names - 8) } end
  return #names > 0 and table.concat(names, ", ") or "none"
end

return M
