// The part of System.Runtime.CompilerServices.Unsafe that Google.Protobuf uses, which mono doesn't have.

using System;

namespace Google.Protobuf
{
    internal static unsafe class Unsafe
    {
        public static T ReadUnaligned<T>(ref byte source)
        {
            fixed (byte* pointer = &source)
            {
                if (typeof(T) == typeof(float)) return (T)(object)*(float*)pointer;
                if (typeof(T) == typeof(double)) return (T)(object)*(double*)pointer;
                if (typeof(T) == typeof(ulong)) return (T)(object)*(ulong*)pointer;
                throw new NotSupportedException(typeof(T).Name);
            }
        }

        public static void WriteUnaligned(ref byte destination, float value)
        {
            fixed (byte* pointer = &destination) *(float*)pointer = value;
        }

        public static ref byte Add(ref byte origin, int offset)
        {
            fixed (byte* pointer = &origin) return ref *(pointer + offset);
        }

        public static ref byte AddByteOffset(ref byte origin, IntPtr offset)
        {
            fixed (byte* pointer = &origin) return ref *(pointer + (long)offset);
        }

        public static ref char AddByteOffset(ref char origin, IntPtr offset)
        {
            fixed (char* pointer = &origin) return ref *(char*)((byte*)pointer + (long)offset);
        }

        public static ref byte As<TFrom, TTo>(ref char origin)
        {
            fixed (char* pointer = &origin) return ref *(byte*)pointer;
        }
    }
}
