--- What goes over a wire in other clothes: base64, text, uuids, the time of day.

local core = require "bough.core"
local raises = require "spec.support.raises"
local scratch = require "spec.support.scratch"

describe("core.base64_encode and base64_decode", function()
  it("are each other's inverse, with the padding that RFC 4648 wants", function()
    for bytes, text in pairs {
      [""] = "", f = "Zg==", fo = "Zm8=", foo = "Zm9v", foob = "Zm9vYg==", fooba = "Zm9vYmE=", foobar = "Zm9vYmFy",
      ["\0"] = "AA==", ["\255\255\255"] = "////", ["\251\239\190"] = "++++", ["\0\0\0\0"] = "AAAAAA==",
    } do
      assert.equal(text, core.base64_encode(bytes))
      assert.equal(bytes, core.base64_decode(text))
    end
    local all = {}
    for i = 0, 255 do all[i + 1] = string.char(i) end
    all = table.concat(all):rep(41)
    for size = #all - 3, #all do
      local part = all:sub(1, size)
      assert.equal(part, core.base64_decode(core.base64_encode(part)))
    end
  end)

  it("write what the base64 program reads", function()
    local bytes = scratch.sh "head -c 10000 /dev/urandom | base64 -w0"
    assert.equal(bytes, core.base64_encode(core.base64_decode(bytes)))
  end)

  it("give nil for what is broken", function()
    for _, text in ipairs {
      "A", "AA", "AAA", "A===", "====", "=AAA", "A=AA", "AA=A", "AAAA=", "AA==AAAA", "AAA=AAAA", "Zm9v\n", " Zm9v",
      "Zm9_", "Zm9-", "Zm\0v", "Zm9\255", "=", "==", "AAAAA===",
    } do assert.is_nil(core.base64_decode(text), text) end
  end)

  it("take strings, and nothing else", function()
    for _, wrong in ipairs { 1, true, {} } do
      raises("invalid", core.base64_encode, wrong)
      raises("invalid", core.base64_decode, wrong)
      raises("invalid", core.is_text, wrong)
    end
    raises("invalid", core.base64_encode)
  end)
end)

describe("core.is_text", function()
  it("is true for printable ASCII, tabs and line ends", function()
    for byte = 0, 255 do
      local good = byte >= 32 and byte <= 126 or byte == 9 or byte == 10 or byte == 13
      assert.equal(good, core.is_text("a" .. string.char(byte)), byte)
    end
    assert.is_true(core.is_text "")
    assert.is_false(core.is_text "\u{e9}")
  end)
end)

describe("core.uuid", function()
  it("makes random ones of version 4, in lower case", function()
    local seen = {}
    for _ = 1, 1000 do
      local uuid = core.uuid()
      assert.truthy(uuid:find "^%x%x%x%x%x%x%x%x%-%x%x%x%x%-4%x%x%x%-[89ab]%x%x%x%-%x%x%x%x%x%x%x%x%x%x%x%x$")
      assert.equal(uuid:lower(), uuid)
      assert.is_nil(seen[uuid])
      seen[uuid] = true
    end
  end)
end)

describe("core.time", function()
  it("is the time of day, with a fraction", function()
    local before = os.time()
    local now = core.time()
    assert.truthy(now >= before and now < before + 60)
    assert.equal("float", math.type(now))
    local fraction = false
    for _ = 1, 5 do fraction = fraction or core.time() % 1 ~= 0 end
    assert.is_true(fraction)
  end)
end)
