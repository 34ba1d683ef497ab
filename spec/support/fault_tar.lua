--- Writes tar archives entry by entry, valid or not: it never refuses anything.

local M = {}

local function field(text, width) return (text .. ("\0"):rep(width)):sub(1, width) end

local function octal(number, width) return ("%0" .. width - 1 .. "o\0"):format(number) end

local function pad(data) return data .. ("\0"):rep(-#data % 512) end

local function header(e, size)
  local function block(sum)
    return field(e.name, 100) .. octal(e.mode or 420, 8) .. octal(e.uid or 0, 8) .. octal(e.gid or 0, 8)
      .. octal(size, 12) .. octal(e.mtime or 1000000000, 12) .. sum .. (e.type or "0")
      .. field(e.link or "", 100) .. "ustar\00000" .. field("root", 32) .. field("root", 32)
      .. octal(e.major or 0, 8) .. octal(e.minor or 0, 8) .. field("", 155)
  end
  local sum = 0
  for byte in block((" "):rep(8)):gmatch "." do sum = sum + byte:byte() end
  return pad(block(("%06o\0 "):format(sum)))
end

local function pax_record(key, value)
  local rest = " " .. key .. "=" .. value .. "\n"
  local length = #rest + 1
  while #tostring(length) + #rest ~= length do length = #tostring(length) + #rest end
  return length .. rest
end

--- One entry: name, data, type ("0" file, "1" hard link, "2" symbolic, "3" "4" device, "5" directory,
--- "6" fifo), link, mode, uid, gid, mtime, size (a lie), pax (table of records in front of it).
function M.entry(e)
  local data, before = e.data or "", ""
  if e.pax then
    local records = {}
    for key, value in pairs(e.pax) do records[#records + 1] = pax_record(key, value) end
    local text = table.concat(records)
    before = header({ name = "pax", type = "x" }, #text) .. pad(text)
  end
  return before .. header(e, e.size or #data) .. pad(data)
end

--- A whole archive.
function M.archive(entries)
  local parts = {}
  for i, e in ipairs(entries) do parts[i] = M.entry(e) end
  return table.concat(parts) .. ("\0"):rep(1024)
end

return M
