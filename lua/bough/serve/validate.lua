--- What clients send, checked: JSON bodies and query parameters against tables that say what may be in them.
--
-- What is wrong raises kind `invalid` with a line that names the field. Fields that no schema knows are passed
-- over, and an explicit null is as good as an absent field.

local check = require "bough.check"
local errors = require "bough.error"
local json = require "bough.json"
local wire = require "bough.contree.wire"

local M = {}

---@class bough.serve.field what one field of a body may be; [1] is the type
---@field [1] "string"|"integer"|"number"|"boolean"|"array"|"map"|"object"
---@field required boolean?
---@field default any for an absent field
---@field min number? numbers: the least; strings: bytes
---@field max number? numbers: the most; strings: bytes; arrays and maps: entries
---@field among string[]? strings: one of these
---@field nul boolean? strings: may hold NUL bytes
---@field of bough.serve.field? arrays and maps: each value
---@field fields table<string, bough.serve.field>? objects
---@field test (fun(value: any): any, string?)? the value to take, or nil and what it must be

---@class bough.serve.parameter what one query parameter may be; [1] is the type
---@field [1] "string"|"strings"|"integer"|"flag"|"moment"
---@field required boolean?
---@field default any
---@field min integer?
---@field max integer? integers: the most; strings: bytes
---@field among string[]?
---@field test (fun(value: any): any, string?)?

local MOST_TEXT = 1 << 20 -- bytes of a string that has no `max`
local MOST_PARAMETER = 4096 -- bytes of a parameter that has no `max`
local MOST_ENTRIES = 10000 -- of an array or map that has no `max`
local MOST_TAG = 255 -- bytes; the store takes no longer ones

local function refuse(op, fmt, ...) errors.raise("invalid", op, fmt, ...) end

local function listed(words) return table.concat(words, ", ") end

local function is_among(value, words)
  for _, word in ipairs(words) do
    if value == word then return true end
  end
  return false
end

local function within(op, where, value, spec)
  local min, max = spec.min, spec.max
  if min and max and (value < min or value > max) then
    refuse(op, "%s must be between %s and %s", where, min, max)
  elseif min and value < min then
    refuse(op, "%s must be at least %s", where, min)
  elseif max and value > max then
    refuse(op, "%s must be at most %s", where, max)
  end
  return value
end

local function checked_text(op, where, value, spec, most)
  if #value > (spec.max or most) then refuse(op, "%s is longer than %d bytes", where, spec.max or most) end
  if spec.min and #value < spec.min then
    refuse(op, spec.min == 1 and "%s must not be empty" or "%s is shorter than %d bytes", where, spec.min)
  end
  if not spec.nul and value:find("\0", 1, true) then refuse(op, "%s must not hold a NUL byte", where) end
  if spec.among and not is_among(value, spec.among) then
    refuse(op, "%s must be one of %s", where, listed(spec.among))
  end
  return value
end

local function tested(op, where, value, spec)
  if not spec.test then return value end
  local taken, wanted = spec.test(value)
  if taken == nil then refuse(op, "%s %s", where, wanted) end
  return taken
end

-- -- bodies -------------------------------------------------------------------------------------------

local read -- a field of any type

local function count(value)
  local n = 0
  for _ in pairs(value) do n = n + 1 end
  return n
end

local article = { array = "an array", map = "an object", object = "an object", integer = "an integer" }

local function mistyped(op, where, spec)
  refuse(op, "%s must be %s", where, article[spec[1]] or "a " .. spec[1])
end

-- JSON's empty object and empty array look the same once they are read.
local function is_array(value) return type(value) == "table" and (value[1] ~= nil or next(value) == nil) end
local function is_object(value) return type(value) == "table" and value[1] == nil end

local function fields_of(op, where, value, fields)
  local taken = {}
  for name, spec in pairs(fields) do
    local path = where and where .. "." .. name or name
    local given = value[name]
    if given == json.null then given = nil end
    if given == nil then
      if spec.required then refuse(op, "%s is missing", path) end
      taken[name] = spec.default
    else
      taken[name] = read(op, path, given, spec)
    end
  end
  return taken
end

local readers = {
  boolean = function(op, where, value, spec)
    if type(value) ~= "boolean" then mistyped(op, where, spec) end
    return value
  end,
  string = function(op, where, value, spec)
    if type(value) ~= "string" then mistyped(op, where, spec) end
    return checked_text(op, where, value, spec, MOST_TEXT)
  end,
  integer = function(op, where, value, spec)
    local whole = type(value) == "number" and math.tointeger(value)
    if not whole then mistyped(op, where, spec) end
    return within(op, where, whole, spec)
  end,
  number = function(op, where, value, spec)
    if type(value) ~= "number" or value ~= value or math.abs(value) == math.huge then mistyped(op, where, spec) end
    return within(op, where, value, spec)
  end,
  array = function(op, where, value, spec)
    if not is_array(value) then mistyped(op, where, spec) end
    local most = spec.max or MOST_ENTRIES
    if #value > most then refuse(op, "%s has more than %d entries", where, most) end
    local taken = {}
    for i, item in ipairs(value) do taken[i] = read(op, ("%s[%d]"):format(where, i - 1), item, spec.of) end
    return taken
  end,
  map = function(op, where, value, spec)
    if not is_object(value) then mistyped(op, where, spec) end
    local most = spec.max or MOST_ENTRIES
    if count(value) > most then refuse(op, "%s has more than %d entries", where, most) end
    local taken = {}
    for name, item in pairs(value) do
      taken[name] = read(op, ("%s[%s]"):format(where, errors.quote(name)), item, spec.of)
    end
    return taken
  end,
  object = function(op, where, value, spec)
    if not is_object(value) then mistyped(op, where, spec) end
    return fields_of(op, where, value, spec.fields)
  end,
}

function read(op, where, value, spec)
  if value == json.null then value = nil end
  return tested(op, where, readers[spec[1]](op, where, value, spec), spec)
end

--- Reads a body that was JSON.
---@param value any of `json.read`
---@param schema table<string, bough.serve.field>
---@param op string? for the error
---@return table taken a fresh table of the fields that the schema knows, with its defaults
function M.body(value, schema, op)
  if not is_object(value) then refuse(op, "the body must be a JSON object") end
  return fields_of(op, nil, value, schema)
end

--- Reads the body of a request as JSON. Waits.
---@param request bough.serve.request
---@param schema table<string, bough.serve.field>
---@param most integer? bytes; default 1 MiB
---@return table taken
function M.json(request, schema, most)
  local value, why = json.read(request:body(most or 1 << 20))
  if not value then refuse(nil, "the body %s", why) end
  return M.body(value, schema)
end

-- -- parameters -------------------------------------------------------------------------------------------

local intervals = { m = 60, h = 3600, d = 86400, w = 604800, s = 1 }

--- A point in time as clients write it: RFC 3339; `15m`, `2h`, `3d`, `1w` back from now; or seconds back from
--- now.
---@param text string
---@param now number? seconds since the epoch
---@return number? seconds since the epoch
function M.moment(text, now)
  local amount, unit = text:match "^(%d+%.?%d*)([smhdw]?)$"
  if amount and #amount <= 15 then
    return (now or os.time()) - tonumber(amount) * (intervals[unit] or 1)
  end
  return wire.moment(text)
end

local off = { ["0"] = true, ["false"] = true, no = true, off = true }
local on = { [""] = true, ["1"] = true, ["true"] = true, yes = true, on = true }

local parameter_readers = {
  string = function(op, name, text, spec) return checked_text(op, name, text, spec, MOST_PARAMETER) end,
  integer = function(op, name, text, spec)
    local value = #text <= 18 and text:find "^[-+]?%d+$" and math.tointeger(tonumber(text))
    if not value then refuse(op, "%s must be an integer", name) end
    return within(op, name, value, spec)
  end,
  flag = function(op, name, text)
    local word = text:lower()
    if on[word] then return true end
    if not off[word] then refuse(op, "%s must be 1 or 0", name) end
    return false
  end,
  moment = function(op, name, text)
    local value = M.moment(text)
    if not value then
      refuse(op, "%s must be a time such as 2026-09-04T12:00:00Z, an interval such as 15m, 2h, 3d or 1w, or seconds",
        name)
    end
    return value
  end,
}

--- Reads the parameters of a query.
---@param params table<string, string[]> of the request
---@param schema table<string, bough.serve.parameter>
---@param op string? for the error
---@return table taken `strings` as arrays, flags as booleans, moments as seconds since the epoch
function M.params(params, schema, op)
  local taken = {}
  for name, spec in pairs(schema) do
    local given = params[name]
    if given == nil or given[1] == nil then
      if spec.required then refuse(op, "%s is missing", name) end
      taken[name] = spec.default
    elseif spec[1] == "strings" then
      local all = {}
      for i, text in ipairs(given) do
        all[i] = tested(op, name, checked_text(op, name, text, spec, MOST_PARAMETER), spec)
      end
      taken[name] = all
    else
      if given[2] ~= nil then refuse(op, "%s is given more than once", name) end
      taken[name] = tested(op, name, parameter_readers[spec[1]](op, name, given[1], spec), spec)
    end
  end
  return taken
end

--- `schema` with the parameters of a listing: limit, offset, since, until.
---@param schema table<string, bough.serve.parameter>?
---@return table<string, bough.serve.parameter>
function M.listing(schema)
  local all = {
    limit = { "integer", min = 1, max = 1000, default = 100 }, offset = { "integer", min = 0, default = 0 },
    since = { "moment" }, ["until"] = { "moment" },
  }
  for name, spec in pairs(schema or {}) do all[name] = spec end
  return all
end

-- -- values that several endpoints share --------------------------------------------------------------------

--- For `test`: a UUID, in lower case.
---@param text string
---@return string?
---@return string?
function M.uuid(text)
  if not check.is_uuid(text) then return nil, "must be a UUID" end
  return text:lower()
end

--- For `test`: a tag as the service takes them.
---@param text string
---@return string?
---@return string?
function M.tag(text)
  if text == "" or #text > MOST_TAG then return nil, ("must be 1 to %d bytes"):format(MOST_TAG) end
  if text:find "[^%l%d_%-:/.]" then
    return nil, "may hold lower-case letters, digits, '_', '-', and ':', '/', '.' as separators"
  end
  if text:find "^[:/.]" or text:find "[:/.]$" or text:find "[:/.][:/.]" then
    return nil, "must not begin or end with a separator (':', '/', '.') nor have two in a row"
  end
  if check.is_uuid(text) then return nil, "looks like a UUID, which would hide it" end
  return text
end

return M
