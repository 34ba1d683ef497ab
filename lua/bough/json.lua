--- JSON from strangers, read within bounds, and the same text for the same value when writing.

local cjson = require "cjson"

local M = {}

-- Far above what any image has, far below what would hurt.
local MOST_BYTES = 8 << 20
local MOST_PARTS = 400000
local MOST_DEPTH = 32

local codec = cjson.new()
codec.decode_max_depth(MOST_DEPTH)
codec.decode_invalid_numbers(false)

--- What `null` becomes, and what is written as `null`.
M.null = cjson.null

local array = { __name = "json.array", __array = true } -- bough.httpd too looks for `__array`

--- Marks a table as an array, which an empty one does not show by itself.
---@param value table? default: a fresh one
---@return table value
function M.array(value) return setmetatable(value or {}, array) end

--- How long a document may be.
M.most_bytes = MOST_BYTES

--- Reads a document. Objects and arrays become tables, `null` becomes `M.null`, numbers floats.
---@param text string
---@return table? value nil for what is not an object or an array
---@return string? why it was refused, one line
function M.read(text)
  if #text > MOST_BYTES then return nil, ("holds more than %d MiB of JSON"):format(MOST_BYTES >> 20) end
  -- each part costs many times its own length in memory, so they are counted first
  local _, parts = text:gsub("[%[{,]", "%0")
  if parts > MOST_PARTS then return nil, ("is JSON of more than %d parts"):format(MOST_PARTS) end
  local good, value = pcall(codec.decode, text)
  if not good then
    local why = tostring(value):gsub("^Found too many nested data structures.*", "nested too deeply")
    return nil, "is not JSON: " .. why:gsub("%c", " ")
  end
  if type(value) ~= "table" then return nil, "is neither a JSON object nor an array" end
  return value
end

local escapes = { ['"'] = '\\"', ["\\"] = "\\\\", ["\n"] = "\\n", ["\t"] = "\\t", ["\r"] = "\\r" }

local function escape(c) return escapes[c] or ("\\u%04x"):format(c:byte()) end

-- What is not UTF-8 cannot be said in JSON.
local function valid_utf8(text)
  local at = 1
  local parts = {}
  while true do
    local good, bad = utf8.len(text, at)
    if good then break end
    parts[#parts + 1] = text:sub(at, bad - 1) .. "\u{FFFD}"
    at = bad + 1
  end
  parts[#parts + 1] = text:sub(at)
  return table.concat(parts)
end

local function put(out, value)
  local kind = type(value)
  if value == cjson.null then
    out[#out + 1] = "null"
  elseif kind == "string" then
    out[#out + 1] = '"' .. valid_utf8(value):gsub('[%c"\\]', escape) .. '"'
  elseif kind == "number" then
    out[#out + 1] = math.tointeger(value) and ("%d"):format(math.tointeger(value)) or ("%.14g"):format(value)
  elseif kind == "boolean" then
    out[#out + 1] = tostring(value)
  elseif value[1] ~= nil or getmetatable(value) == array then
    if value[1] == nil then out[#out + 1] = "[" end
    for i, item in ipairs(value) do
      out[#out + 1] = i == 1 and "[" or ","
      put(out, item)
    end
    out[#out + 1] = "]"
  else
    local names = {}
    for name in pairs(value) do names[#names + 1] = name end
    table.sort(names)
    out[#out + 1] = "{"
    for i, name in ipairs(names) do
      if i > 1 then out[#out + 1] = "," end
      put(out, name)
      out[#out + 1] = ":"
      put(out, value[name])
    end
    out[#out + 1] = "}"
  end
end

--- Writes a value: names sorted, no blanks. A table with `[1]` or of `M.array` is an array, any other an object.
---@param value any
---@return string
function M.write(value)
  local out = {}
  put(out, value)
  return table.concat(out)
end

return M
