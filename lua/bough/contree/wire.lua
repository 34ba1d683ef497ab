--- How values look on the wire of a ConTree service: streams, moments, query strings, JSON.

local cjson = require "cjson"
local core = require "bough.core"
local errors = require "bough.error"

local M = {}

local raise = errors.raise

--- What is written as `null`; answers never hold it.
M.null = cjson.null

-- JSON ---------------------------------------------------------------------------------------------

local MOST_DEPTH = 64
local MOST_PARTS = 4 << 20 -- each costs many times its own length in memory

local codec = cjson.new()
codec.decode_max_depth(MOST_DEPTH)
codec.decode_invalid_numbers(false)

--- Takes the fields that are `null` out of what was read: they mean the same as absent ones.
---@param value table
---@return table value the same
function M.drop_nulls(value)
  for name, item in next, value do
    if item == cjson.null then
      value[name] = nil
    elseif type(item) == "table" then
      M.drop_nulls(item)
    end
  end
  return value
end

--- Reads JSON from a stranger. Fields that are `null` are absent in the result; numbers are floats.
---@param text string
---@return table? value nil for what is neither an object nor an array
---@return string? why it was refused, one line
function M.decode(text)
  if #text > MOST_PARTS then
    local _, parts = text:gsub("[%[{,]", "")
    if parts > MOST_PARTS then return nil, ("is JSON of more than %d parts"):format(MOST_PARTS) end
  end
  local good, value = pcall(codec.decode, text)
  if not good then
    local why = tostring(value):gsub("^Found too many nested data structures.*", "nested too deeply")
    return nil, "is not JSON: " .. why:gsub("%c", " ")
  end
  if type(value) ~= "table" then return nil, "is neither a JSON object nor an array" end
  if text:find("null", 1, true) then M.drop_nulls(value) end
  return value
end

local array_meta = {}

--- Marks a table as a JSON array, which an empty one could not be told from an object without.
---@generic T: table
---@param items T
---@return T items the same table
function M.array(items) return setmetatable(items, array_meta) end

local escapes = { ['"'] = '\\"', ["\\"] = "\\\\", ["\n"] = "\\n", ["\t"] = "\\t", ["\r"] = "\\r" }

local function escape(c) return escapes[c] or ("\\u%04x"):format(c:byte()) end

local put

local function put_text(out, text, op, at)
  if text:find '[%c"\\\128-\255]' then
    if not utf8.len(text) then
      raise("invalid", op, "%s is not UTF-8, and the service takes no other text: %s", at, errors.quote(text))
    end
    text = text:gsub('[%c"\\]', escape)
  end
  out[#out + 1] = '"'
  out[#out + 1] = text
  out[#out + 1] = '"'
end

local function put_number(out, number, op, at)
  local whole = math.tointeger(number)
  if whole then
    out[#out + 1] = ("%d"):format(whole)
  elseif number ~= number or number == math.huge or number == -math.huge then
    raise("invalid", op, "%s must be finite", at)
  else
    out[#out + 1] = ("%.17g"):format(number)
  end
end

local function put_table(out, value, op, at)
  if value[1] ~= nil or getmetatable(value) == array_meta then
    out[#out + 1] = "["
    for i, item in ipairs(value) do
      if i > 1 then out[#out + 1] = "," end
      put(out, item, op, ("%s[%d]"):format(at, i))
    end
    out[#out + 1] = "]"
    return
  end
  local names = {}
  for name in pairs(value) do
    if type(name) ~= "string" then raise("invalid", op, "%s has a name that is no string", at) end
    names[#names + 1] = name
  end
  table.sort(names)
  out[#out + 1] = "{"
  for i, name in ipairs(names) do
    if i > 1 then out[#out + 1] = "," end
    put_text(out, name, op, "a name in " .. at)
    out[#out + 1] = ":"
    put(out, value[name], op, at == "the request" and name or at .. "." .. name)
  end
  out[#out + 1] = "}"
end

function put(out, value, op, at)
  local kind = type(value)
  if value == cjson.null then
    out[#out + 1] = "null"
  elseif kind == "string" then
    put_text(out, value, op, at)
  elseif kind == "number" then
    put_number(out, value, op, at)
  elseif kind == "boolean" then
    out[#out + 1] = tostring(value)
  elseif kind == "table" then
    put_table(out, value, op, at)
  else
    raise("invalid", op, "%s is a %s", at, kind)
  end
end

--- Writes JSON: names sorted, no blanks. A table with `[1]`, or one marked by `array`, is an array, any other an
--- object. Raises `invalid` for text that is not UTF-8 and for numbers that are not finite: nothing is changed in
--- silence.
---@param value any
---@param op string? for messages
---@return string
function M.encode(value, op)
  local out = {}
  put(out, value, op, "the request")
  return table.concat(out)
end

-- Streams ------------------------------------------------------------------------------------------

---@class bough.contree.stream what a command read or wrote
---@field value string
---@field encoding "ascii"|"base64"|nil
---@field truncated boolean?

--- Bytes as the service wants them: printable ASCII as it is, all else in base64.
---@param bytes string
---@return bough.contree.stream
function M.stream(bytes)
  if core.is_text(bytes) then return { value = bytes, encoding = "ascii" } end
  return { value = core.base64_encode(bytes), encoding = "base64" }
end

--- The bytes of a stream from an answer or an event; "" for base64 that is broken and for what is no stream.
---@param repr bough.contree.stream?
---@return string
function M.bytes(repr)
  local value = type(repr) == "table" and repr.value
  if type(value) ~= "string" then return "" end
  if repr.encoding == "base64" then return core.base64_decode(value) or "" end
  return value
end

-- Moments ------------------------------------------------------------------------------------------

-- Days since 1970-01-01 of a day in the Gregorian calendar.
local function days(year, month, day)
  if month <= 2 then
    year, month = year - 1, month + 12
  end
  return 365 * year + year // 4 - year // 100 + year // 400 + (153 * (month - 3) + 2) // 5 + day - 719469
end

local month_days = { 31, 29, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31 }

local function epoch(year, month, day, hour, minute, second)
  local whole = math.tointeger
  year, month, day = whole(tonumber(year)), whole(tonumber(month)), whole(tonumber(day))
  hour, minute, second = whole(tonumber(hour)), whole(tonumber(minute)), whole(tonumber(second))
  if not month_days[month] or day < 1 or day > month_days[month] or hour > 23 or minute > 59 or second > 60 then
    return nil
  end
  return days(year, month, day) * 86400 + hour * 3600 + minute * 60 + second
end

--- An RFC 3339 timestamp as seconds since the epoch.
---@param text string? with `Z` or an offset, and up to 9 digits of a fraction
---@return number? seconds nil for what is no timestamp
function M.moment(text)
  if type(text) ~= "string" then return nil end
  local year, month, day, hour, minute, second, rest =
    text:match "^(%d%d%d%d)%-(%d%d)%-(%d%d)[Tt ](%d%d):(%d%d):(%d%d)(.*)$"
  if not year then return nil end
  local fraction, zone = rest:match "^%.(%d+)(.+)$"
  if not fraction then fraction, zone = "0", rest end
  if #fraction > 9 then return nil end
  local offset = 0
  if zone ~= "Z" and zone ~= "z" then
    local sign, hours, minutes = zone:match "^([+-])(%d%d):(%d%d)$"
    if not sign then return nil end
    offset = (tonumber(hours) * 60 + tonumber(minutes)) * 60 * (sign == "-" and -1 or 1)
  end
  local seconds = epoch(year, month, day, hour, minute, second)
  return seconds and seconds - offset + tonumber("0." .. fraction)
end

--- Seconds since the epoch as an RFC 3339 timestamp in UTC, to the microsecond.
---@param seconds number
---@return string
function M.rfc3339(seconds)
  local whole = math.floor(seconds)
  local micros = math.floor((seconds - whole) * 1e6 + 0.5)
  if micros >= 1000000 then
    whole, micros = whole + 1, 0
  end
  return os.date("!%Y-%m-%dT%H:%M:%S", whole) .. (".%06dZ"):format(micros)
end

local months = { Jan = 1, Feb = 2, Mar = 3, Apr = 4, May = 5, Jun = 6, Jul = 7, Aug = 8, Sep = 9, Oct = 10,
  Nov = 11, Dec = 12 }

--- What a Retry-After header asks for: seconds, whole or not, or an HTTP date.
---@param text string?
---@return number? seconds from now, never negative; nil for what says nothing
function M.retry_after(text)
  if not text then return nil end
  local trimmed = text:match "^%s*(.-)%s*$"
  if trimmed:find "^[+-]?%d*%.?%d*$" and trimmed:find "%d" then return math.max(tonumber(trimmed) or 0, 0) end
  local day, name, year, hour, minute, second =
    trimmed:match "^%a+, (%d%d?) (%a+) (%d%d%d%d) (%d%d):(%d%d):(%d%d) GMT$"
  local at = months[name] and epoch(year, months[name], day, hour, minute, second)
  return at and math.max(at - core.time(), 0)
end

-- URLs ---------------------------------------------------------------------------------------------

--- Escapes a segment of a path: `a/b` becomes `a%2Fb`.
---@param text string
---@return string
function M.escape(text)
  return (text:gsub("[^%w._~-]", function(c) return ("%%%02X"):format(c:byte()) end))
end

--- A query string from pairs of name and value, in their order: "" or "?a=b&...". `true` is a flag and becomes `1`;
--- `false` and nil are left out; a table repeats the name for each of its items.
---@param pairs_of { [1]: string, [2]: string|number|boolean|string[]|nil }[]
---@return string
function M.query(pairs_of)
  local parts = {}
  local function add(name, value)
    if value == true then value = "1" end
    if math.type(value) == "float" and math.tointeger(value) then value = math.tointeger(value) end
    if value ~= nil and value ~= false then parts[#parts + 1] = M.escape(name) .. "=" .. M.escape(tostring(value)) end
  end
  for _, pair in ipairs(pairs_of) do
    local name, value = pair[1], pair[2]
    if type(value) == "table" then
      for _, item in ipairs(value) do add(name, item) end
    else
      add(name, value)
    end
  end
  return parts[1] and "?" .. table.concat(parts, "&") or ""
end

local function hex(digits) return ("%x"):rep(digits) end

local uuid_pattern = "^" .. table.concat({ hex(8), hex(4), hex(4), hex(4), hex(12) }, "%-") .. "$"

--- Whether a reference is a UUID (in either case); everything else is a tag.
---@param text any
---@return boolean
function M.is_uuid(text)
  return type(text) == "string" and text:find(uuid_pattern) ~= nil
end

-- Secrets ------------------------------------------------------------------------------------------

local secret_headers = { authorization = true, ["proxy-authorization"] = true, cookie = true, ["set-cookie"] = true,
  ["x-api-key"] = true, ["x-auth-token"] = true }
local secret_endings = { "token", "secret", "password", "api_key", "credentials", "authorization" }

--- What stands in the place of a secret.
M.REDACTED = "[redacted]"

--- Whether a field or a header of this name holds a secret.
---@param name string
---@return boolean
function M.is_secret(name)
  local lower = name:lower()
  if secret_headers[lower] then return true end
  for _, ending in ipairs(secret_endings) do
    if lower:sub(-#ending) == ending then return true end
  end
  return false
end

--- A copy of a value fit for a log: what names of fields call a secret is gone.
---@param value any
---@return any
function M.redact(value)
  if type(value) ~= "table" then return value end
  local copy = {}
  for name, item in pairs(value) do
    local secret = type(name) == "string" and item ~= cjson.null and M.is_secret(name)
    copy[name] = secret and M.REDACTED or M.redact(item)
  end
  return copy
end

return M
